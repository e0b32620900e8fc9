--#include lib
-- Give tasks that have no due instant their first one; those that have one keep it.
-- items: the run that a task with run_on_first_start gets now, if it has neither due instant nor ledger
-- ARGV[2] worker:epoch:nonce; then for each item: task, first due ms, run id or '' (no run at first start), priority,
--   overlap
-- reply: 'deposed', or for each item 'enrolled', 'started' (enrolled, and its first run queued) or 'known'
-- Repeatable: acts only on a task that has no due instant.
local ITEM = 5
if redis.call('GET', LEADER) ~= ARGV[2] then return 'deposed' end
return each((#ARGV - 2) / ITEM, function(i)
  local at = 3 + (i - 1) * ITEM
  local task, first, id, priority, overlap = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  if redis.call('ZSCORE', DUE, 't/' .. task) then return 'known' end
  local run = item(i, id)
  check(run)
  local starts = id ~= '' and redis.call('XLEN', run.ledger) == 0 and not run.state
  return starts and 'started' or 'enrolled', function()
    if starts then create(run, task, '', priority, overlap) end
    redis.call('ZADD', DUE, 'NX', first, 't/' .. task)
  end
end)
