-- Bring back what a worker remembers of dynamic tasks, pauses and due instants: while Redis is told what it forgot, and of
-- several memories the newest.
-- A due instant that is there stays, unless it is one of the slots that tasks are known to have been moved past, and the
-- one remembered is later: of several memories the latest counts. No slot up to these is opened again (passed).
-- KEYS: generation, leader, version, events; then what kind 1, 2 and 3 are about: dynamic, paused, due; passed
-- ARGV: id of the history, version of the catalog that is remembered, the latest slot that any task was moved past, ms, or 0;
--   then for each item: kind, field, value now or '' (none), value remembered or '' (none); of kind 3 the member of due, '',
--   and its instant
-- reply: 'over' (all have told, or it took too long: what is there now counts), 'older' (a newer memory was restored), or
--   how many items were brought back; those whose value is another one by now are left
-- Repeatable: compares the value, and instants only grow. Freeing first: gets through when memory is full.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ':0:' .. ARGV[1] then return 'over' end
if (tonumber(redis.call('HGET', KEYS[1], 'restored') or 0) or 0) > tonumber(ARGV[2]) then return 'older' end
local current = redis.call('GET', KEYS[3]) or '0'
if not string.match(current, '^%d+$') or #current > 15 then
  return redis.error_reply(string.format('MALFORMED %s holds what is no number', KEYS[3]))
end
redis.call('XLEN', KEYS[4])
redis.call('HLEN', KEYS[5])
redis.call('HLEN', KEYS[6])
redis.call('ZCARD', KEYS[7])
local known = redis.call('GET', KEYS[8]) or '0'
local passed = tonumber(known) or math.huge -- what is no instant is publish's to refuse
redis.call('HDEL', KEYS[5], '')
if tonumber(ARGV[3]) > passed then
  passed = tonumber(ARGV[3])
  redis.call('SET', KEYS[8], ARGV[3])
end
local restored = 0
for i = 4, #ARGV, 4 do
  local kind, field, before, after = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if kind == 3 then
    local at = tonumber(redis.call('ZSCORE', KEYS[7], field) or nil)
    if not at or (at <= passed and tonumber(after) > at) then
      redis.call('ZADD', KEYS[7], after, field)
      restored = restored + 1
    end
  elseif (redis.call('HGET', KEYS[4 + kind], field) or '') == before then
    restored = restored + 1
    if after == '' then
      redis.call('HDEL', KEYS[4 + kind], field)
    else
      redis.call('HSET', KEYS[4 + kind], field, after)
    end
  end
end
redis.call('HSET', KEYS[1], 'restored', ARGV[2])
if restored > 0 then
  redis.call('INCR', KEYS[3])
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'event', 'restored', 'what', ARGV[1])
end
return restored
