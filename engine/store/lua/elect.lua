-- Lead, if nobody does.
-- Writes the schema's version where there is none: Redis was full when the first worker came, or has lost everything.
-- KEYS: leader, epoch, meta, generation, once:<worker>:<nonce>
-- ARGV: worker, nonce (chosen once for each candidacy), lease ms, schema's version, id of the history that this worker has
--   told all that it remembers, or ''
-- reply: {'led', worker:epoch:nonce, Redis ms}, {'held', holder's value, ms left of its lease} (to a candidacy that has
--   resigned with no holder), or {'other', id} (Redis goes on with another history: what was scheduled there may be
--   forgotten here); or the error RECOVERING
-- Repeatable: a candidate whose own nonce leads already gets the same epoch again. Another candidacy of the same worker
-- (its Leader was restarted) takes over at once, with a new epoch: the former one is dead.
local worker, nonce, ttl = ARGV[1], ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local held, history = redis.call('GET', KEYS[1]), redis.call('HMGET', KEYS[4], 'id', 'floor')
if (history[1] or '') ~= ARGV[5] then return {'other', history[1] or ''} end
if string.sub(held or '', 1, 1) == ':' then
  return redis.error_reply('RECOVERING what was forgotten is being told again')
end
if redis.call('GET', KEYS[#KEYS]) then return {'held', held or '', tonumber(ttl)} end
local last = redis.call('GET', KEYS[2]) or '0'
if not string.match(last, '^%d+$') or #last > 15 then
  return redis.error_reply(string.format('MALFORMED %s holds what is no epoch', KEYS[2]))
end
if held then
  local holder, _, theirs = string.match(held, '^(.*):(%d+):([^:]*)$')
  -- Not written by an election: it must not last for ever.
  if not holder or redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ttl) end
  if holder == worker and theirs == nonce then
    redis.call('PEXPIRE', KEYS[1], ttl)
    return {'led', held, now}
  end
  if holder ~= worker then
    return {'held', held, redis.call('PTTL', KEYS[1])}
  end
end
local floor = string.match(history[2] or '', '^%d+$') and #history[2] < 16 and history[2] or 0
local epoch = string.format('%.0f', math.max(last + 1, now, floor))
local value = worker .. ':' .. epoch .. ':' .. nonce
if redis.call('HEXISTS', KEYS[3], 'schema') == 0 then redis.call('HSET', KEYS[3], 'schema', ARGV[4]) end
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], value, 'PX', ttl)
return {'led', value, now}
