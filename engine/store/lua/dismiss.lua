--#include lib
-- Stop scheduling tasks that the catalog does not have, and end their runs that are not running: queued, parked ->
-- skipped (no worker), or failed if they had started; waiting -> failed (no worker). Running ones go on. Many runs take
-- several calls, in the last of which the task leaves due. Pauses and ledgers stay.
-- KEYS: behind the items: version
-- ARGV[2] worker:epoch:nonce, ARGV[3] version of the catalog that has none of them, ARGV[4] most runs in this call; then
--   for each item: task
-- reply: 'deposed', or for each item {'dismissed', runs ended}, {'more', runs ended} (call again), {'changed', version}
--   (by now it may be declared: nothing was written) or {'broken', why}
-- Repeatable: ends what is there. Freeing first.
if redis.call('GET', LEADER) ~= ARGV[2] then return 'deposed' end
redis.call('XLEN', EVENTS)
local version, room, gone = redis.call('GET', KEYS[#KEYS]) or '0', tonumber(ARGV[4]), {}
local replies = each(#ARGV - 4, function(i)
  local task, at = ARGV[4 + i], 13 + (i - 1) * 3
  if version ~= ARGV[3] then return {'changed', version} end
  local live, ledger, ends, left = KEYS[at + 1], KEYS[at + 2], {}, false
  redis.call('XLEN', ledger)
  local found = redis.call('HGETALL', live)
  for run_at = 1, #found, 2 do
    if #ends == room then
      left = left or found[run_at + 1] ~= 'running'
    elseif found[run_at + 1] ~= 'running' then
      local run = load(found[run_at], RUNS .. found[run_at], live, ledger)
      check(run)
      ends[#ends + 1] = run
    end
  end
  room = room - #ends
  if #ends == 0 and not redis.call('ZSCORE', DUE, 't/' .. task) then return {left and 'more' or 'dismissed', 0} end
  return {left and 'more' or 'dismissed', #ends}, function()
    if not left then redis.call('ZREM', DUE, 't/' .. task) end
    for _, run in ipairs(ends) do finish(run, run.fence == '0' and 'skipped' or 'failed', 'no worker') end
    gone[#gone + 1] = task
  end
end)
if #gone > 0 then announce('dismissed', table.concat(gone, ' '), '') end
return replies
