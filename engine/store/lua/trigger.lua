--#include lib
-- Queue runs that no slot asks for, or say why not. A refusal leaves no verdict: the caller is told.
-- KEYS: behind the items' once:<run id> for each
-- ARGV[2] who, ARGV[3] queue_cap; then for each item: run id, task, priority, overlap, force (1 or ''), kwargs (JSON) or ''
-- reply: for each item 'queued', 'paused' (force passes that), 'overlap', 'queue full' or {'broken', why}
-- Repeatable: the answer is kept under the run's id, so a run that has ended since is not queued again, and one that was
-- refused is not queued behind its caller's back. Growing first: refused whole when memory is full.
local ITEM = 6
local who, cap, count = ARGV[2], tonumber(ARGV[3]), (#ARGV - 3) / 6
local queued = {}
redis.call('XLEN', EVENTS)
local replies = each(count, function(i)
  local at = 4 + (i - 1) * ITEM
  local id, task, priority, overlap = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local force, kwargs, key = ARGV[at + 4] ~= '', ARGV[at + 5], KEYS[#KEYS - count + i]
  local before = redis.call('GET', key)
  if before then return before end
  local reply, act = ask(item(i, id), task, priority, overlap, force, kwargs, cap)
  return reply, function()
    if act then
      act()
      queued[#queued + 1] = id
    end
    redis.call('SET', key, reply, 'EX', 600)
  end
end)
if #queued > 0 then announce('triggered', table.concat(queued, ' '), who) end
return replies
