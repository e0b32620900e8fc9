--#include lib
-- A run's time is up but its thread goes on: the verdict is written now, and the run stays until the thread returns or
-- its lease is lost, so that nothing overlaps it.
-- ARGV[2] worker, ARGV[3] run id, ARGV[4] fence, ARGV[5] reason, ARGV[6] line of the story
-- reply: {'ok'}, {'gone'}, {'fenced'} or {{'broken', why}}
-- Repeatable: an abandoned run is not judged again.
return each(1, function(i)
  local run = item(i, ARGV[3])
  if not run.state then return 'gone' end
  if run.state ~= 'running' or run.worker ~= ARGV[2] or run.fence ~= ARGV[4] then return 'fenced' end
  if run.abandoned then return 'ok' end
  check(run)
  tell(run, ARGV[6])
  return 'ok', function()
    redis.call('HDEL', run.key, 'why')
    redis.call('HSET', run.key, 'abandoned', 1, 'story', run.story)
    if not run.removed then
      redis.call('XADD', run.ledger, 'MAXLEN', '~', LEDGER_LENGTH, '*', 'verdict', 'failed', 'reason', ARGV[5],
        'run', run.id, 'slot', run.slot, 'attempt', run.attempt, 'story', run.story)
    end
  end
end)
