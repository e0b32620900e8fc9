-- Forget a declared set that no live worker has had for retire_after, and stop scheduling tasks that no set has.
-- KEYS: leader, declarations, version, events, due, declared:<digest>   ARGV: worker:epoch:nonce, digest or '' (only
--   tasks); then the ids of the tasks that go
-- reply: 'deposed' or the number of tasks that went. Their pauses and ledgers stay.
-- Repeatable: removes only what is there.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'deposed' end
redis.call('GET', KEYS[3])
redis.call('XLEN', KEYS[4])
redis.call('HLEN', KEYS[2])
local gone, changed = 0, 0
for i = 3, #ARGV do
  gone = gone + redis.call('ZREM', KEYS[5], 't/' .. ARGV[i])
end
if ARGV[2] ~= '' then
  changed = redis.call('HDEL', KEYS[2], ARGV[2])
  redis.call('DEL', KEYS[6])
end
if gone + changed > 0 then
  redis.call('INCR', KEYS[3])
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'event', 'retired', 'what', ARGV[2], 'tasks', gone)
end
return gone
