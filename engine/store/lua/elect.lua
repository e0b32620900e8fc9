-- Lead, if nobody does.
-- Writes the schema's version where there is none: Redis was full when the first worker came, or has lost everything.
-- KEYS: leader, epoch, meta   ARGV: worker, nonce (chosen once for each candidacy), lease ms, schema's version
-- reply: {'led', worker:epoch:nonce, Redis ms} or {'held', holder's value, ms left of its lease}
-- Repeatable: a candidate whose own nonce leads already gets the same epoch again. Another candidacy of the same worker
-- (its Leader was restarted) takes over at once, with a new epoch: the former one is dead.
local worker, nonce, ttl = ARGV[1], ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local held = redis.call('GET', KEYS[1])
if held then
  local holder, _, theirs = string.match(held, '^(.*):(%d+):([^:]*)$')
  if holder == worker and theirs == nonce then
    redis.call('PEXPIRE', KEYS[1], ttl)
    return {'led', held, now}
  end
  if holder ~= worker then
    return {'held', held, redis.call('PTTL', KEYS[1])}
  end
end
local epoch = string.format('%.0f', math.max((redis.call('GET', KEYS[2]) or 0) + 1, now))
local value = worker .. ':' .. epoch .. ':' .. nonce
if redis.call('HEXISTS', KEYS[3], 'schema') == 0 then redis.call('HSET', KEYS[3], 'schema', ARGV[4]) end
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], value, 'PX', ttl)
return {'led', value, now}
