--#include lib
-- Move tasks past a due slot: a run in a stream, or a verdict that says why not. scheduled -> queued.
-- items: the run of that slot
-- KEYS: behind the items: passed
-- ARGV[2] worker:epoch:nonce, ARGV[3] queue_cap; then for each item: task, expected due ms, next due ms or '' (none),
--   run id, priority, overlap
-- reply: 'deposed', or for each item 'published', {'skipped', reason}, {'early', Redis ms}, {'moved', due ms or ''} or
--   {'broken', why}
-- Repeatable: acts only if due holds the expected instant, and always moves it. Growing first: refused whole when memory
-- is full.
local ITEM, BUSY = 6, {queued = true, running = true, parked = true}
if redis.call('GET', LEADER) ~= ARGV[2] then return 'deposed' end
local cap, length = tonumber(ARGV[3]), {}
for priority, stream in pairs(STREAMS) do length[priority] = unread(stream) end
local text = redis.call('GET', KEYS[#KEYS]) or '0'
local passed = string.match(text, '^%d+$') and #text < 16 and tonumber(text)
if not passed then return redis.error_reply(string.format('MALFORMED %s holds what is no instant', KEYS[#KEYS])) end
local latest = passed

local replies = each((#ARGV - 3) / ITEM, function(i)
  local at = 4 + (i - 1) * ITEM
  local task, expected, next_at = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local id, priority, overlap = ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local score = redis.call('ZSCORE', DUE, 't/' .. task)
  if not score or tonumber(score) ~= expected then return {'moved', score or ''} end
  if expected > NOW then return {'early', NOW} end
  local run = item(i, id)
  check(run)

  local function move()
    latest = math.max(latest, expected)
    if next_at == '' then
      redis.call('ZREM', DUE, 't/' .. task)
    else
      redis.call('ZADD', DUE, 'XX', next_at, 't/' .. task)
    end
  end
  local function skip(reason)
    return {'skipped', reason}, function()
      passed_over(run.ledger, 'skipped', reason, int(expected), int(expected), 1, next_at)
      move()
    end
  end

  if run.state then return 'published', move end
  if paused(task) then return skip('paused') end
  if overlap == 'skip' and others(run.live, id, BUSY) then return skip('overlap') end
  if length[priority] >= cap then return skip('queue full') end
  length[priority] = length[priority] + 1
  local retries = overlap == 'allow' and {} or retries_before(run)
  return 'published', function()
    create(run, task, int(expected), priority, overlap)
    move()
    for _, retry in ipairs(retries) do finish(retry, 'failed', 'superseded') end
  end
end)
if latest > passed then redis.call('SET', KEYS[#KEYS], int(latest)) end
return replies
