--#include lib
-- Move tasks from one due instant to another, and record the slots passed over, if any: skip and reschedule.
-- items: only the ledger is used
-- KEYS: behind the items: passed
-- ARGV[2] worker:epoch:nonce; then for each item: task, expected due ms, next due ms or '' (none), count of slots passed
--   over, the last of them ms, verdict, reason
-- reply: 'deposed', or for each item 'done', {'early', Redis ms} (a slot that was never due cannot be passed over, and none
--   can be opened again; since clocks step back, what counts is now or the latest ever passed), {'moved', due ms or ''} or
--   {'broken', why}
-- Repeatable: acts only if due holds the expected instant. Growing first: refused whole when memory is full.
local ITEM = 7
if redis.call('GET', LEADER) ~= ARGV[2] then return 'deposed' end
local text = redis.call('GET', KEYS[#KEYS]) or '0'
local passed = string.match(text, '^%d+$') and #text < 16 and tonumber(text)
if not passed then return redis.error_reply(string.format('MALFORMED %s holds what is no instant', KEYS[#KEYS])) end
local latest = passed
local replies = each((#ARGV - 2) / ITEM, function(i)
  local at = 3 + (i - 1) * ITEM
  local task, expected, next_at, count, last = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3]),
    ARGV[at + 4]
  local verdict, reason, ledger = ARGV[at + 5], ARGV[at + 6], KEYS[13 + (i - 1) * 3 + 2]
  local score = redis.call('ZSCORE', DUE, 't/' .. task)
  if not score or tonumber(score) ~= expected then return {'moved', score or ''} end
  if count > 0 and tonumber(last) > math.max(NOW, passed) then return {'early', NOW} end
  local earlier = next_at ~= '' and tonumber(next_at) < expected
  if earlier and tonumber(next_at) <= math.max(NOW, passed) then return {'early', NOW} end
  redis.call('XLEN', ledger)
  return 'done', function()
    if count > 0 then
      passed_over(ledger, verdict, reason, int(expected), last, count, next_at)
      latest = math.max(latest, tonumber(last))
    end
    if next_at == '' then
      redis.call('ZREM', DUE, 't/' .. task)
    else
      redis.call('ZADD', DUE, 'XX', next_at, 't/' .. task)
    end
  end
end)
if latest > passed then redis.call('SET', KEYS[#KEYS], int(latest)) end
return replies
