--#include lib
-- Give tasks that have no due instant their first one; those that have one keep it.
-- items: the run that a task with run_on_first_start gets now, if it has neither due instant nor ledger
-- KEYS: behind the items: version
-- ARGV[2] worker:epoch:nonce, ARGV[3] the version of the catalog that has these tasks; then for each item: task, first due
--   ms, run id or '' (no run at first start), priority, overlap
-- reply: 'deposed', or for each item 'enrolled', 'started' (enrolled, and its first run queued), 'known', 'outdated' (the
--   catalog has changed since, and may not have the task any longer) or {'broken', why}
-- Repeatable: acts only on a task that has no due instant.
local ITEM = 5
if redis.call('GET', LEADER) ~= ARGV[2] then return 'deposed' end
local outdated = (redis.call('GET', KEYS[#KEYS]) or '0') ~= ARGV[3]
return each((#ARGV - 3) / ITEM, function(i)
  if outdated then return 'outdated' end
  local at = 4 + (i - 1) * ITEM
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
