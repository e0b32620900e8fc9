--#include lib
-- Give runs back to the queue, uncounted, after their bodies have ended or before they began. running -> queued,
-- or ended: abandoned, removed, or asked to stop, which is cancelled here.
-- ARGV[2] worker; then for each item: run id, fence, token
-- reply: for each item 'ok', 'gone', 'fenced' or {'broken', why}
-- Repeatable: the token that ended this attempt gets the first reply again. Freeing first.
local ITEM = 3
local worker = ARGV[2]
return each((#ARGV - 2) / ITEM, function(i)
  local at = 3 + (i - 1) * ITEM
  local id, fence, token = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local run = item(i, id)
  if not run.state then return 'gone' end
  if run.ended == token then return 'ok' end
  if run.state ~= 'running' or run.worker ~= worker or run.fence ~= fence then return 'fenced' end
  check(run)
  return 'ok', function()
    redis.call('ZREM', LEASES, lease(run))
    redis.call('SREM', CANCEL, lease(run))
    if run.removed or run.abandoned or run.cancel then return finish(run, 'failed', 'cancelled') end
    drop_entry(run)
    redis.call('HSET', run.key, 'fence', next_fence(run), 'ended', token)
    enqueue(run)
  end
end)
