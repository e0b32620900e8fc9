--#include lib
-- Hide the statistics of tasks up to now: the newest verdict of each, and this instant, are noted. The verdicts stay.
-- KEYS: behind the items: cleared, once:<operation>   ARGV[2] who; then the task of each item
-- reply: for each item {entry id of the newest verdict or '0-0', ms} or {'broken', why}
-- Repeatable: the answer is kept, so verdicts that came since stay in sight. Growing first: refused when memory is full.
local CLEARED = KEYS[#KEYS - 1]
local function task(i) return ARGV[2 + i] end
return once(KEYS[#KEYS], 'statistics cleared', ARGV[2], #ARGV - 2, function(i)
  local newest = redis.call('XREVRANGE', item(i, '').ledger, '+', '-', 'COUNT', 1)[1]
  local reply = {newest and newest[1] or '0-0', int(NOW)}
  return reply, function() redis.call('HSET', CLEARED, task(i), reply[1] .. '|' .. reply[2]) end
end, task)
