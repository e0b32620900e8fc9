--#include lib
-- Queue what a dead run was to do once more, as a run of its own: no slot, first attempt, the same arguments.
-- KEYS: the last is once:<operation>   ARGV[2] who, ARGV[3] queue_cap, ARGV[4] entry of dead, ARGV[5] new run id,
--   ARGV[6] its task
-- reply: {'queued'} (the entry has left dead), {'gone'} (no such entry), {'paused'}, {'overlap'}, {'queue full'} (the
--   entry stays) or {{'broken', why}}
-- Repeatable: the answer is kept. Growing first: refused whole when memory is full.
local who, cap, entry, id, task, key = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6], KEYS[#KEYS]
redis.call('XLEN', EVENTS)
return each(1, function(i)
  local before = redis.call('GET', key)
  if before then return before end
  local found, dead = redis.call('XRANGE', DEAD, entry, entry)[1], {}
  if not found then
    return 'gone', function() redis.call('SET', key, 'gone', 'EX', 600) end
  end
  for at = 1, #found[2], 2 do dead[found[2][at]] = found[2][at + 1] end
  if dead.task ~= task then error('the dead run ' .. entry .. ' is not of the task ' .. task, 0) end
  local reply, act = ask(item(i, id), task, dead.priority, dead.overlap, false, dead.kwargs or '', cap)
  return reply, function()
    if act then act() end
    redis.call('SET', key, reply, 'EX', 600)
    if act then
      redis.call('XDEL', DEAD, entry)
      announce('revived', id, who)
    end
  end
end)
