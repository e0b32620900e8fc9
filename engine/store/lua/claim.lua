--#include lib
-- Take runs that this worker has read; no body starts before. queued -> running.
-- ARGV[2] worker, ARGV[3] token (chosen once for each call), ARGV[4] lease ms; then for each item: run id, entry, priority
-- reply: for each item {'claimed', fence, task, slot ms or '', attempt, deliveries, kwargs or ''},
--   {'ended', verdict, reason} (refused, with a verdict), 'stale' (not the run's current entry: acknowledged and deleted)
--   or {'broken', why}, or the error RECOVERING: an entry that Redis kept may be a run that another worker goes on with.
--   A run whose workers were lost before waits until begin.
-- Repeatable: the same token gets the same fence and counts nothing. It holds a whole lease again, since the body begins
-- with the answer to the repeat. Freeing first then: a run that was granted is not held up by full memory.
local ITEM, RUNNING = 3, {running = true}
local NEEDED = {'state', 'task', 'slot', 'attempt', 'deliveries', 'worker', 'fence', 'token', 'entry', 'priority', 'overlap',
  'force', 'abandoned', 'removed', 'story', 'kwargs'}
local worker, token, expiry = ARGV[2], ARGV[3], int(NOW + ARGV[4])
if recovering() then return redis.error_reply(RECOVERING) end
local granted = {} -- live index of a task that does not overlap itself -> the run that it got in this call
local sought = {}
for at = 5, #ARGV, ITEM do
  local stream = STREAMS[ARGV[at + 2]]
  sought[stream] = sought[stream] or {}
  table.insert(sought[stream], ARGV[at + 1])
end
local pending = read_between(worker, sought)
local leases = {}
local replies = each((#ARGV - 4) / ITEM, function(i)
  local at = 5 + (i - 1) * ITEM
  local id, entry, priority = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local stream = STREAMS[priority]
  local run = item(i, id, NEEDED)
  local kwargs = run.kwargs or ''
  if run.state == 'running' and run.entry == entry and run.worker == worker and run.token == token then
    return {'claimed', run.fence, run.task, run.slot, run.attempt, run.deliveries, kwargs}, function()
      redis.call('ZREM', LEASES, '')
      redis.call('ZADD', LEASES, 'XX', expiry, lease(run))
    end
  end
  local mine = pending[entry] == stream or has_read(worker, stream, entry)
  if run.state ~= 'queued' or run.entry ~= entry or not mine then
    return 'stale', run.entry ~= entry and mine and function()
      redis.call('XACK', stream, GROUP, entry)
      redis.call('XDEL', stream, entry)
    end or nil
  end
  check(run)
  local fresh = run.fence == '0'
  local function refuse(verdict, reason)
    return {'ended', verdict, reason}, function() finish(run, verdict, reason) end
  end
  if fresh and not run.force and paused(run.task) then return refuse('skipped', 'paused') end
  if run.overlap ~= 'allow' then
    if (granted[run.live] or id) ~= id or others(run.live, id, RUNNING) then
      if fresh then return refuse('skipped', 'overlap') end
      return refuse('failed', 'superseded')
    end
    granted[run.live] = id
  end
  local fence = next_fence(run)
  return {'claimed', fence, run.task, run.slot, run.attempt, run.deliveries, kwargs}, function()
    leases[#leases + 1] = expiry
    leases[#leases + 1] = id .. '#' .. fence
    redis.call('HSET', run.key, 'state', 'running', 'worker', worker, 'fence', fence, 'token', token)
    if run.deliveries ~= '0' then redis.call('HSET', run.key, 'waits', 1) end
    redis.call('HSET', run.live, id, 'running')
  end
end)
if #leases > 0 then redis.call('ZADD', LEASES, unpack(leases)) end
return replies
