--#include lib
-- Queue runs whose time has come again: a retry that waited, a run that was parked. waiting, parked -> queued.
-- ARGV[2] worker:epoch:nonce; then for each item: run id, expected due ms
-- reply: 'deposed', or for each item 'queued', {'ended', verdict, reason}, {'early', Redis ms}, {'moved', due ms or ''},
--   'gone' (no such run: its due and live entries are removed) or {'broken', why}
-- Repeatable: acts only if due holds the expected instant and the run waits or is parked. Growing first.
local ITEM, BUSY = 2, {queued = true, running = true}
if redis.call('GET', LEADER) ~= ARGV[2] then return 'deposed' end
return each((#ARGV - 2) / ITEM, function(i)
  local at = 3 + (i - 1) * ITEM
  local id, expected = ARGV[at], tonumber(ARGV[at + 1])
  local member = 'r/' .. id
  local score = redis.call('ZSCORE', DUE, member)
  if not score or tonumber(score) ~= expected then return {'moved', score or ''} end
  if expected > NOW then return {'early', NOW} end
  local run = item(i, id)
  check(run)
  if run.state ~= 'waiting' and run.state ~= 'parked' then
    return 'gone', function()
      redis.call('ZREM', DUE, member)
      if not run.state then redis.call('HDEL', run.live, id) end
    end
  end
  local started = run.state == 'waiting'
  local function refuse(verdict, reason)
    return {'ended', verdict, reason}, function() finish(run, verdict, reason) end
  end
  if not run.force and paused(run.task) then
    if started then return refuse('failed', 'paused') end
    if run.fence == '0' then return refuse('skipped', 'paused') end
  end
  if run.overlap ~= 'allow' and others(run.live, id, BUSY) then
    if started then return refuse('failed', 'superseded') end
    return refuse('skipped', 'overlap')
  end
  return 'queued', function()
    enqueue(run)
    redis.call('ZREM', DUE, member)
  end
end)
