-- Say what a process declares: one page of its set at a time, the set itself entered with the last page.
-- KEYS: declared:<digest>, declarations, version, events, unused   ARGV: digest, page number, page (opaque JSON), pages in all
-- reply: 'page' (more to come), 'declared' (a new set), 'known'
-- Repeatable: the same content again changes nothing, but that the set is in use now.
redis.call('GET', KEYS[3])
redis.call('XLEN', KEYS[4])
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then
  redis.call('HDEL', KEYS[5], ARGV[1])
  return 'known'
end
redis.call('HLEN', KEYS[5])
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
if redis.call('HLEN', KEYS[1]) < tonumber(ARGV[4]) then
  redis.call('EXPIRE', KEYS[1], 600) -- a set whose process died before its last page
  return 'page'
end
redis.call('PERSIST', KEYS[1])
local clock = redis.call('TIME')
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000)))
redis.call('INCR', KEYS[3])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'event', 'declared', 'what', ARGV[1])
return 'declared'
