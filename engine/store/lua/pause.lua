-- Pause a task, or resume it.
-- KEYS: paused, version, events, once:<operation>   ARGV: task, until ms or 0 for no end | details, or '' to resume
-- reply: 1 changed, 0 was so already
-- Repeatable: the answer is kept for its repeat.
redis.call('GET', KEYS[2])
redis.call('XLEN', KEYS[3])
local before = redis.call('GET', KEYS[4])
if before then return tonumber(before) end
local old = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local changed = old ~= ARGV[2] and 1 or 0
redis.call('SET', KEYS[4], changed, 'EX', 600)
if changed == 1 then
  if ARGV[2] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
  else
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  end
  redis.call('INCR', KEYS[2])
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'event', ARGV[2] == '' and 'resumed' or 'paused',
    'what', ARGV[1], 'details', ARGV[2])
end
return changed
