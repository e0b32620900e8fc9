-- Keep the leases of a worker's runs, and its presence.
-- KEYS: leases, cancel, workers, workers:seen, version   ARGV: worker, presence, lease ms; then run#fence for each run
-- reply: {Redis ms, version, {run#fence that are not this worker's any longer}, {run#fence that should stop}}
-- Repeatable: revives nothing (ZADD XX). The first write only removes: gets through when memory is full.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local expiry = string.format('%.0f', now + ARGV[3])
local lost, stop, scores = {}, {}, {}
local any_stop = redis.call('SCARD', KEYS[2]) > 0
for i = 4, #ARGV do
  scores[#scores + 1] = expiry
  scores[#scores + 1] = ARGV[i]
  if any_stop and redis.call('SISMEMBER', KEYS[2], ARGV[i]) == 1 then stop[#stop + 1] = ARGV[i] end
end
local version = redis.call('GET', KEYS[5]) or '0'
redis.call('HLEN', KEYS[3])
redis.call('ZCARD', KEYS[4])
redis.call('ZREM', KEYS[1], '')
if #scores > 0 and redis.call('ZADD', KEYS[1], 'XX', 'CH', unpack(scores)) < #ARGV - 3 then
  for i = 4, #ARGV do
    if not redis.call('ZSCORE', KEYS[1], ARGV[i]) then lost[#lost + 1] = ARGV[i] end
  end
end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[4], now, ARGV[1])
return {now, version, lost, stop}
