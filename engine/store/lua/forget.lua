--#include lib
-- Remove a task that was made at run time: definition, due instant, pause, ledger, clearing; its runs end without a
-- verdict, and a running one is marked, so that its end leaves none either. Many runs take several calls, between which a
-- tombstone keeps the name: revision| and no definition. A task that processes declare, too, stays withdrawn when all of it
-- is gone: revision|- hides it, and its tombstone is revision|>-; the revision of both is the version that they make.
-- KEYS: behind the item: dynamic, cleared, version, once:<operation>   ARGV[2] task, ARGV[3] who, ARGV[4] most runs in this
--   call, ARGV[5] 1 to finish only what is begun, or '', ARGV[6] 1 if processes declare it, or ''
-- reply: {{'forgotten', runs ended}}, {{'more', runs ended}} (call again), {'unknown'} (no such task, or withdrawn already)
--   or {{'broken', why}}; the numbers are those of all calls of this operation. Or the error RECOVERING
-- Repeatable: the answer is kept, and with it an operation touches nothing but its tombstone. Freeing first.
local task, who, room, begun, declared = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] ~= '', ARGV[6] ~= ''
local DYNAMIC, CLEARED, VERSION, ONCE = KEYS[#KEYS - 3], KEYS[#KEYS - 2], KEYS[#KEYS - 1], KEYS[#KEYS]
if recovering() then return redis.error_reply(RECOVERING) end
redis.call('XLEN', EVENTS)
redis.call('HLEN', CLEARED)
local version = redis.call('GET', VERSION) or '0'
if not string.match(version, '^%d+$') or #version > 15 then
  return redis.error_reply(string.format('MALFORMED %s holds what is no number', VERSION))
end
return each(1, function(i)
  local before, value = not begun and redis.call('GET', ONCE), redis.call('HGET', DYNAMIC, task)
  local revision, definition = string.match(value or '', '^(%d*)|(.*)$')
  local tombstone = definition == '' or definition == '>-'
  if not tombstone then
    if before then return before == 'unknown' and before or {'forgotten', before} end
    if begun then return 'unknown' end
    if definition == '-' or not (value or declared) then
      return 'unknown', function()
        redis.call('DEL', ONCE)
        redis.call('SET', ONCE, 'unknown', 'EX', 600)
      end
    end
  end

  local live, ledger = item(i, '').live, item(i, '').ledger
  redis.call('XLEN', ledger)
  local found, ends, marks, left = redis.call('HGETALL', live), {}, {}, 0
  for at = 1, #found, 2 do
    local run = load(found[at], RUNS .. found[at], live, ledger)
    if not run.removed then
      check(run)
      local list = run.state == 'running' and marks or ends
      if #ends + #marks < room then list[#list + 1] = run else left = left + 1 end
    end
  end
  local total = int((tonumber(before) or 0) + #ends)
  return {left > 0 and 'more' or 'forgotten', total}, function()
    redis.call('ZREM', DUE, 't/' .. task)
    redis.call('HDEL', PAUSED, task)
    redis.call('HDEL', CLEARED, task)
    for _, run in ipairs(ends) do
      run.removed = true
      finish(run)
    end
    for _, run in ipairs(marks) do redis.call('HSET', run.key, 'removed', 1) end
    redis.call('DEL', ledger)
    if declared or definition == '>-' then
      redis.call('HSET', DYNAMIC, task, int(version + 1) .. (left > 0 and '|>-' or '|-'))
    elseif left == 0 then
      redis.call('HDEL', DYNAMIC, task)
    elseif not tombstone then
      redis.call('HSET', DYNAMIC, task, (revision or '') .. '|')
    end
    if left == 0 or not tombstone then redis.call('INCR', VERSION) end
    if not begun then redis.call('SET', ONCE, total, 'EX', 600) end
    if not tombstone then announce('forgotten', task, who) end
  end
end)
