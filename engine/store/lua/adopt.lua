--#include lib
-- Tell Redis again which runs this worker has, and how those ended that it had lately: it may have forgotten.
-- Slots of runs that were not there at all are noted in retold: due may not have passed them. No slot up to them is opened
-- again, whatever the clock of this server says.
-- A run that is not there may not be forgotten either: its task was removed, and it went with it. Where a newer memory than
-- this worker's counts, or all have told, dynamic says so.
-- KEYS: behind the items: retold, passed, dynamic
-- ARGV[2] worker, ARGV[3] lease ms, ARGV[4] version of the catalog that it remembers; then for each item: run id, fence,
--   token, task, slot ms or '', attempt, deliveries, priority, overlap, kwargs (JSON) or '', end ('' in progress, 'waiting' a
--   failure that is tried again, or a verdict), reason, line of the story, due ms of the retry or '', what it remembers of the
--   task in dynamic ('1' a definition, a mark, or '' nothing)
-- reply: for each item 'kept' (nothing was forgotten), 'told' (it was, and is there again), 'newer' (somebody had the run
--   after this worker), 'ended' (the ledger has or had a verdict of it, or its task was removed) or {'broken', why}
-- Repeatable: what was told is kept. Never takes a run from a greater fence. Freeing first: gets through when memory is full.
local ITEM = 15
local worker, expiry, RETOLD, PASSED, DYNAMIC = ARGV[2], NOW + ARGV[3], KEYS[#KEYS - 2], KEYS[#KEYS - 1], KEYS[#KEYS]
redis.call('HLEN', RETOLD)
redis.call('HLEN', DYNAMIC)
local newer = not recovering() or (tonumber(redis.call('HGET', GENERATION, 'restored') or 0) or 0) > tonumber(ARGV[4])
local passed = tonumber(redis.call('GET', PASSED) or 0) or math.huge -- what is no instant is publish's to refuse
local latest = passed

-- Run ids with a verdict, of the newest entries of a ledger: those that can be about a run that was claimed then, or up
-- to ten minutes later by another clock.
local judged = {}
local function has_verdict(ledger, id, claimed_at)
  local known = judged[ledger]
  if not known or known.from > claimed_at then
    known = {from = claimed_at}
    for _, entry in ipairs(redis.call('XRANGE', ledger, int(claimed_at), '+')) do
      for at = 1, #entry[2], 2 do
        if entry[2][at] == 'run' then known[entry[2][at + 1]] = true end
      end
    end
    judged[ledger] = known
  end
  return known[id]
end

-- Can the verdict have been trimmed? A full ledger whose oldest entry is younger than the claim, and older than this
-- history, says that Redis has forgotten nothing of that run: its record is gone because it ended.
local began = tonumber(redis.call('HGET', GENERATION, 'began') or 0) or 0
local function trimmed(ledger, claimed_at)
  if redis.call('XLEN', ledger) < LEDGER_LENGTH - 1 then return false end -- less one where two entries were joined
  local oldest = redis.call('XRANGE', ledger, '-', '+', 'COUNT', 1)[1]
  local at = oldest and tonumber(string.match(oldest[1], '^%d+'))
  return at and at > claimed_at and at < began
end

-- Has the task gone since it was as this worker remembers it? One that is being removed has not: what it has is ended later.
local function removed(task, former)
  if not newer then return false end
  local now = redis.call('HGET', DYNAMIC, task)
  if now then return now ~= former and string.match(now, '^%d+|%-$') end
  return former == '1'
end

local replies = each((#ARGV - 4) / ITEM, function(i)
  local at = 5 + (i - 1) * ITEM
  local id, fence, token, task = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local slot, attempt, deliveries = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
  local priority, overlap, kwargs = ARGV[at + 7], ARGV[at + 8], ARGV[at + 9]
  local ending, reason, line, retry_at = ARGV[at + 10], ARGV[at + 11], ARGV[at + 12], ARGV[at + 13]
  local run = item(i, id)
  check(run)
  local behind = {entry = run.entry, priority = run.priority, fence = run.fence, id = id}
  local forgotten = not run.state
  if run.state then
    if tonumber(run.fence) > tonumber(fence) then return 'newer' end
    if run.fence == fence then
      if run.state ~= 'running' or run.worker ~= worker or tonumber(run.attempt) ~= tonumber(attempt) then return 'kept' end
      if ending == '' and redis.call('ZSCORE', LEASES, lease(run)) then return 'kept' end
    else
      forgotten = true
    end
  elseif removed(task, ARGV[at + 14]) or has_verdict(run.ledger, id, math.max(0, math.min(fence, NOW) - 600000))
      or ending ~= '' and trimmed(run.ledger, tonumber(fence)) then
    return 'ended'
  end
  if forgotten then
    run.state, run.task, run.slot, run.attempt, run.deliveries = 'running', task, slot, attempt, deliveries
    run.worker, run.fence, run.priority, run.overlap = worker, fence, priority, overlap
    run.entry, run.abandoned, run.ended = '', nil, nil
  end
  if ending ~= '' then tell(run, line) end
  if ending == 'waiting' and (run.removed or run.abandoned or run.cancel) then ending, reason = 'failed', 'cancelled' end

  return 'told', function()
    redis.call('ZREM', DUE, 'r/' .. id)
    if not behind.fence and slot ~= '' then
      latest = math.max(latest, tonumber(slot))
      redis.call('HSET', RETOLD, id, slot)
      redis.call('EXPIRE', RETOLD, 3600)
    end
    if forgotten and behind.fence then
      redis.call('ZREM', LEASES, lease(behind))
      redis.call('SREM', CANCEL, lease(behind))
      drop_entry(behind)
    end
    if ending ~= '' and ending ~= 'waiting' then
      if ending == 'dead' and not (run.abandoned or run.removed) then bury_run(run, reason) end
      return finish(run, ending, reason)
    end
    redis.call('HSET', run.key, 'state', 'running', 'task', run.task, 'slot', run.slot, 'attempt', run.attempt,
      'deliveries', run.deliveries, 'worker', worker, 'fence', fence, 'token', token, 'entry', run.entry or '',
      'priority', run.priority, 'overlap', run.overlap)
    if kwargs ~= '' then redis.call('HSET', run.key, 'kwargs', kwargs) end
    if forgotten then redis.call('HDEL', run.key, 'ended', 'why', 'abandoned') end
    if ending == '' then
      redis.call('HSET', run.live, id, 'running')
      redis.call('ZADD', LEASES, int(expiry), lease(run))
      return
    end
    redis.call('ZREM', LEASES, lease(run))
    redis.call('SREM', CANCEL, lease(run))
    drop_entry(run)
    redis.call('HSET', run.key, 'state', 'waiting', 'entry', '', 'attempt', int(attempt + 1), 'ended', token,
      'story', run.story)
    redis.call('HSET', run.live, id, 'waiting')
    redis.call('ZADD', DUE, retry_at, 'r/' .. id)
    wake('r/' .. id, tonumber(retry_at))
  end
end)
if latest > passed then redis.call('SET', PASSED, int(latest)) end
return replies
