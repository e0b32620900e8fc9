--#include lib
-- An attempt failed and the run is tried again after a delay. running -> waiting. (A failure without a retry: complete.)
-- ARGV[2] worker; then for each item: run id, fence, token, delay ms, line of the story
-- reply: for each item {'waiting', due ms}, 'gone' (also for a run that is not tried again: abandoned, removed, or asked
--   to stop, which is cancelled here), 'fenced' or {'broken', why}
-- Repeatable: the token that ended this attempt gets the first reply again. Freeing first.
local ITEM = 5
local worker = ARGV[2]
return each((#ARGV - 2) / ITEM, function(i)
  local at = 3 + (i - 1) * ITEM
  local id, fence, token, delay, line = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local run = item(i, id)
  if not run.state then return 'gone' end
  if run.ended == token and run.state == 'waiting' then
    return {'waiting', tonumber(redis.call('ZSCORE', DUE, 'r/' .. id))}
  end
  if run.state ~= 'running' or run.worker ~= worker or run.fence ~= fence then
    return run.ended == token and 'gone' or 'fenced'
  end
  check(run)
  tell(run, line)
  if run.removed or run.abandoned or run.cancel then
    return 'gone', function() finish(run, 'failed', 'cancelled') end
  end
  local retry_at = NOW + delay
  return {'waiting', retry_at}, function()
    redis.call('ZREM', LEASES, lease(run))
    redis.call('SREM', CANCEL, lease(run))
    drop_entry(run)
    redis.call('HSET', run.key, 'state', 'waiting', 'entry', '', 'attempt', int(run.attempt + 1), 'ended', token,
      'story', run.story)
    redis.call('HSET', run.live, id, 'waiting')
    redis.call('ZADD', DUE, int(retry_at), 'r/' .. id)
    wake('r/' .. id, retry_at)
  end
end)
