--#include lib
-- Take runs from workers that are lost. running -> queued, or dead after max_deliveries.
-- KEYS: the last is the workers' presence
-- ARGV[2] worker:epoch:nonce, ARGV[3] max_deliveries; then for each item: run id, fence seen, expiry seen ms, line of
--   the story
-- reply: 'deposed', or for each item {'queued', worker}, {'dead', worker}, 'ended' (an abandoned or removed run: its
--   verdict stands; a run that should stop: it is cancelled), 'renewed' (its lease is not the one that was seen), 'gone'
--   or {'broken', why}
-- Repeatable: compares fence and expiry. Counts a delivery unless the lost worker was draining, or the run waited for
-- others to end: its body had not begun, so it is not what ended its worker. That is said max_deliveries times at most.
-- Growing first.
local ITEM = 4
if redis.call('GET', LEADER) ~= ARGV[2] then return 'deposed' end
local most, WORKERS = tonumber(ARGV[3]), KEYS[#KEYS]
return each((#ARGV - 3) / ITEM, function(i)
  local at = 4 + (i - 1) * ITEM
  local id, fence, expiry, line = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3]
  local run = item(i, id)
  local member = id .. '#' .. fence
  local score = redis.call('ZSCORE', LEASES, member)
  if not score then return 'gone' end
  if tonumber(score) ~= expiry then return 'renewed' end
  if run.state ~= 'running' or run.fence ~= fence then
    return 'gone', function()
      redis.call('ZREM', LEASES, member)
      redis.call('SREM', CANCEL, member)
    end
  end
  check(run)
  tell(run, line)
  if run.abandoned or run.removed or run.cancel then
    return 'ended', function() finish(run, 'failed', 'cancelled') end
  end
  local presence = redis.call('HGET', WORKERS, run.worker) or ''
  local spared = tonumber(run.spared or 0) + (run.waits and 1 or 0)
  local waited = run.waits and spared <= most
  local counts = not waited and string.sub(presence, 1, 1) ~= 'D'
  local deliveries = run.deliveries + (counts and 1 or 0)
  if deliveries >= most and not waited then
    return {'dead', run.worker}, function()
      bury_run(run, 'max_deliveries')
      finish(run, 'dead', 'max_deliveries')
    end
  end
  return {'queued', run.worker}, function()
    local old = {entry = run.entry, priority = run.priority}
    enqueue(run)
    redis.call('HSET', run.key, 'fence', next_fence(run), 'deliveries', int(deliveries),
      'story', run.story, 'spared', int(spared))
    redis.call('ZREM', LEASES, member)
    redis.call('SREM', CANCEL, member)
    drop_entry(old)
  end
end)
