-- A worker has told all that it remembers. When everybody has who is waited for, the seat is free again.
-- KEYS: generation, leader, events
-- ARGV: id of the history, worker, ms that no fence given before can exceed, how many beats were acknowledged by the last
--   answer that this worker had or 0, how many things it had to tell; then the workers that it knows of
-- reply: {'over' or 'waiting', ms since which something is lost or ''}, or {'other', ''} (Redis goes on with another
--   history by now)
-- Announces history_lost, with cause and window, when something was forgotten: the beat, or what had to be told.
-- Repeatable: a worker has told once. Freeing first: gets through when memory is full.
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return {'other', ''} end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local worker, seen, count = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local facts = redis.call('HMGET', KEYS[1], 'floor', 'lost_from', 'left', 'left_at', 'cause')
for i = 1, 4 do -- others may have written there
  if facts[i] and (not string.match(facts[i], '^%d+$') or #facts[i] > 15) then facts[i] = false end
end
local held = redis.call('GET', KEYS[2]) == ':0:' .. ARGV[1]
redis.call('XLEN', KEYS[3])

local names, has_told = {worker}, {}
local marks = redis.call('HGETALL', KEYS[1])
for i = 1, #marks, 2 do
  local name = string.match(marks[i], '^told/(.*)$')
  if name then names[#names + 1], has_told[name] = name, marks[i + 1] == '1' end
end
for i = 6, #ARGV do names[#names + 1] = ARGV[i] end
has_told[worker] = true

redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], 'floor', string.format('%.0f', math.max(tonumber(facts[1]) or 0, ARGV[3])))
local lost_from = (tonumber(facts[3] or 0) < seen or count > 0) and (facts[4] or '0') or ''
if lost_from ~= '' and not facts[2] then
  redis.call('HSET', KEYS[1], 'lost_from', lost_from)
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'event', 'history_lost', 'what', facts[5] or '',
    'from', lost_from, 'to', string.format('%.0f', now), 'who', worker)
end
if not held then return {'over', lost_from} end
local waiting = false
for _, name in ipairs(names) do
  redis.call('HSET', KEYS[1], 'told/' .. name, has_told[name] and '1' or '0')
  waiting = waiting or not has_told[name]
end
if waiting then return {'waiting', lost_from} end
for _, name in ipairs(names) do redis.call('HDEL', KEYS[1], 'told/' .. name) end
redis.call('DEL', KEYS[2])
return {'over', lost_from}
