--#include lib
-- Give back entries that were read and never claimed, so that another worker can read them.
-- for each item of ARGV from 2: run id, entry, priority
-- reply: for each item 'requeued' (the run's current entry: a new one takes its place), 'dropped' (any other entry) or
--   'kept' (the current entry of a run in progress, which belongs to its lease) or {'broken', why}
-- Repeatable: compares the entry. Growing first.
local ITEM = 3
return each((#ARGV - 1) / ITEM, function(i)
  local at = 2 + (i - 1) * ITEM
  local id, entry, priority = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local stream = STREAMS[priority]
  local run = item(i, id)
  redis.call('XLEN', stream)
  local function drop()
    redis.call('XACK', stream, GROUP, entry)
    redis.call('XDEL', stream, entry)
  end
  if run.entry ~= entry then return 'dropped', drop end
  if run.state ~= 'queued' then return 'kept' end
  check(run)
  return 'requeued', function()
    enqueue(run)
    drop()
  end
end)
