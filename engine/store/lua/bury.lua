-- Forget a worker that is gone: its presence and its places in the consumer groups.
-- KEYS: stream:high, stream:low, workers, workers:seen, leases, run prefix, generation   ARGV: worker, last beat seen ms
-- reply: 'buried', 'alive' (it has beaten since), 'pending' (entries that it read are not released yet),
--   'leased' (a run is still its own)
-- Repeatable: a worker that is not there is buried.
local worker, groups = ARGV[1], {}
local seen = redis.call('ZSCORE', KEYS[4], worker)
if seen and tonumber(seen) ~= tonumber(ARGV[2]) then return 'alive' end
for i = 1, 2 do
  local pending = redis.pcall('XPENDING', KEYS[i], 'workers', '-', '+', 1, worker)
  if not pending.err then
    if #pending > 0 then return 'pending' end
    groups[#groups + 1] = KEYS[i]
  elseif not string.find(tostring(pending.err), 'NOGROUP', 1, true) then
    return pending
  end
end
for _, member in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
  local run = string.match(member, '^(.*)#')
  if run and redis.pcall('HGET', KEYS[6] .. run, 'worker') == worker then return 'leased' end
end
local roster = tonumber(redis.call('HGET', KEYS[7], 'roster') or 0) or 0
if redis.call('HDEL', KEYS[3], worker) == 1 then
  redis.call('HSET', KEYS[7], 'roster', string.format('%.0f', roster + 1))
end
redis.call('ZREM', KEYS[4], worker)
for _, stream in ipairs(groups) do redis.call('XGROUP', 'DELCONSUMER', stream, 'workers', worker) end
return 'buried'
