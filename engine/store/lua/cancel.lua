--#include lib
-- Stop runs. queued, waiting, parked -> failed (cancelled); a running one is asked to stop, and not tried again.
-- KEYS: the last is once:<operation>   ARGV[2] who; then the run id of each item
-- reply: for each item 'ended', 'asked', 'gone' (no such run) or {'broken', why}
-- Repeatable: the answer is kept. Freeing first.
local function run_id(i) return ARGV[2 + i] end
local ended = {} -- by an earlier item of this call
return once(KEYS[#KEYS], 'cancelled', ARGV[2], #ARGV - 2, function(i)
  local run = item(i, run_id(i))
  if not run.state then return 'gone' end
  check(run)
  if run.state ~= 'running' then
    if ended[run.id] then return 'ended' end
    ended[run.id] = true
    return 'ended', function() finish(run, 'failed', 'cancelled') end
  end
  return 'asked', function()
    redis.call('SREM', CANCEL, lease(run))
    redis.call('SADD', CANCEL, lease(run))
    redis.call('HSET', run.key, 'cancel', 1)
  end
end, run_id)
