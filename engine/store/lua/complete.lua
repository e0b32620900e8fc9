--#include lib
-- End runs that their worker still owns, with a verdict. running -> succeeded, or failed for good (no retry left).
-- ARGV[2] worker; then for each item: run id, fence, verdict, reason, line of the story
-- reply: for each item 'ok', 'gone' (no such run: on a repeat, done before), 'fenced' (lost: nothing is written)
--   or {'broken', why}; behind them how many runs of the high stream nobody has read, since whoever has room now reads on
-- Repeatable: a run ends once. Freeing first: gets through when memory is full.
local ITEM = 5
local NEEDED = {'state', 'task', 'slot', 'attempt', 'deliveries', 'worker', 'fence', 'entry', 'priority', 'story', 'abandoned',
  'removed'}
local worker = ARGV[2]
local ended = {}
local replies = each((#ARGV - 2) / ITEM, function(i)
  local at = 3 + (i - 1) * ITEM
  local id, fence, verdict, reason, line = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local run = item(i, id, NEEDED)
  if not run.state then return 'gone' end
  if run.state ~= 'running' or run.worker ~= worker or run.fence ~= fence then return 'fenced' end
  check(run)
  tell(run, line)
  return 'ok', function()
    if verdict == 'dead' and not (run.abandoned or run.removed) then
      redis.call('ZREM', LEASES, lease(run))
      bury_run(run, reason)
    end
    run.verdict, run.reason = verdict, reason
    ended[#ended + 1] = run
  end
end)
finish_all(ended)
replies[#replies + 1] = redis.call('XLEN', STREAMS.high) > 0 and unread(STREAMS.high) or 0
return replies
