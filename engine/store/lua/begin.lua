--#include lib
-- The body of a run begins whose workers were lost before: from now on the loss of this one counts, too. Until then it
-- waited to be alone, and what ended its worker was another run.
-- ARGV[2] worker; then for each item: run id, fence
-- reply: for each item 'ok', 'gone' (no such run), 'fenced' (lost: nothing is written) or {'broken', why}
-- Repeatable: what was begun is begun. Frees only: gets through when memory is full.
local ITEM = 2
local worker = ARGV[2]
return each((#ARGV - 2) / ITEM, function(i)
  local at = 3 + (i - 1) * ITEM
  local run = item(i, ARGV[at])
  if not run.state then return 'gone' end
  if run.state ~= 'running' or run.worker ~= worker or run.fence ~= ARGV[at + 1] then return 'fenced' end
  check(run)
  return 'ok', run.waits and function() redis.call('HDEL', run.key, 'waits') end or nil
end)
