--#include lib
-- Put queued runs aside that this worker cannot start (it does not know the function, or they would have to run beside
-- what must end first), for a worker that can. queued -> parked.
-- ARGV[2] worker, ARGV[3] most runs of one task that are parked, ARGV[4] first delay ms, ARGV[5] longest delay ms, ARGV[6] why;
--   then for each item: run id, entry, priority
-- reply: for each item {'parked', due ms}, {'ended', 'skipped', 'no worker'} (too many of this task), 'stale' or
--   {'broken', why}
-- Repeatable: only the current entry of a queued run, pending for this worker. The delay doubles each time.
local ITEM = 3
local worker, cap, first, longest, why = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local parked = {} -- live index of a task -> how many of its runs are, with those of this call
return each((#ARGV - 6) / ITEM, function(i)
  local at = 7 + (i - 1) * ITEM
  local id, entry, priority = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local run = item(i, id)
  local mine = has_read(worker, STREAMS[priority], entry)
  if run.state ~= 'queued' or run.entry ~= entry or not mine then return 'stale' end
  check(run)
  if not parked[run.live] then
    parked[run.live] = 0
    for _, state in ipairs(redis.call('HVALS', run.live)) do
      if state == 'parked' then parked[run.live] = parked[run.live] + 1 end
    end
  end
  if parked[run.live] >= cap then
    return {'ended', 'skipped', 'no worker'}, function() finish(run, 'skipped', 'no worker') end
  end
  parked[run.live] = parked[run.live] + 1
  local defers = tonumber(run.defers or 0)
  local look_at = NOW + math.min(longest, first * 2 ^ math.min(defers, 30))
  return {'parked', look_at}, function()
    redis.call('ZADD', DUE, int(look_at), 'r/' .. id)
    redis.call('HSET', run.key, 'state', 'parked', 'why', why, 'defers', int(defers + 1), 'entry', '')
    redis.call('HSET', run.live, id, 'parked')
    drop_entry(run)
    wake('r/' .. id, look_at)
  end
end)
