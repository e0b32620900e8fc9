-- Keep the leases of a worker's runs, and its presence.
-- KEYS: leases, cancel, workers, workers:seen, version, generation, passed
-- ARGV: worker, presence, lease ms, id of the history that this worker has told all that it remembers, or ''; then run#fence
--   for each run
-- reply: {Redis ms, version, {run#fence that are not this worker's any longer}, {run#fence that should stop}, id of the
--   history, how often a worker came or went, how many beats were acknowledged, the latest slot that any task was moved
--   past, ms}. With another history nothing was written, and nothing said of runs or slots.
-- Repeatable: revives nothing (ZADD XX), and who was draining (D) is so still. The first write only removes: gets through
-- when memory is full. Only leases of another type refuse it: what else is broken is told by whoever needs it, and costs
-- no run its lease.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local expiry = string.format('%.0f', now + ARGV[3])
local lost, stop, scores = {}, {}, {}
local history = redis.pcall('HMGET', KEYS[6], 'id', 'roster', 'beats')
local version = redis.pcall('GET', KEYS[5])
if type(version) ~= 'string' or not string.match(version, '^%d+$') then version = '0' end
for i = 2, 3 do
  if not string.match(history[i] or '', '^%d+$') or #history[i] > 15 then history[i] = '0' end
end
if (history[1] or '') ~= ARGV[4] then return {now, version, {}, {}, history[1] or '', history[2], '0', '0'} end
local passed = redis.pcall('GET', KEYS[7])
if type(passed) ~= 'string' or not string.match(passed, '^%d+$') or #passed > 15 then passed = '0' end
local stops = redis.pcall('SCARD', KEYS[2])
local any_stop = type(stops) == 'number' and stops > 0
for i = 5, #ARGV do
  scores[#scores + 1] = expiry
  scores[#scores + 1] = ARGV[i]
  if any_stop and redis.call('SISMEMBER', KEYS[2], ARGV[i]) == 1 then stop[#stop + 1] = ARGV[i] end
end
redis.call('ZREM', KEYS[1], '')
if #scores > 0 and redis.call('ZADD', KEYS[1], 'XX', 'CH', unpack(scores)) < #ARGV - 4 then
  for i = 5, #ARGV do
    if not redis.call('ZSCORE', KEYS[1], ARGV[i]) then lost[#lost + 1] = ARGV[i] end
  end
end
local said, presence = redis.pcall('HGET', KEYS[3], ARGV[1]), ARGV[2]
if type(said) == 'string' and string.sub(said, 1, 1) == 'D' then presence = 'D' .. string.sub(presence, 2) end
local roster, beats = history[2], history[3]
if redis.pcall('HSET', KEYS[3], ARGV[1], presence) == 1 then
  roster = string.format('%.0f', roster + 1)
  redis.pcall('HSET', KEYS[6], 'roster', roster)
end
redis.pcall('ZADD', KEYS[4], now, ARGV[1])
if history[1] then
  beats = string.format('%.0f', beats + 1)
  redis.pcall('HSET', KEYS[6], 'beats', beats, 'beat', string.format('%.0f', now))
end
return {now, version, lost, stop, history[1] or '', roster, beats, passed}
