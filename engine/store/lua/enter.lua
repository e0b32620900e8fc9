-- Say which history this Redis goes on with, and begin another one where it may have forgotten what it acknowledged: its
-- keys are gone, or the server is not the one that acknowledged them (it restarted from what it had saved, or it is a
-- replica that took over).
-- Where there is somebody to tell what was forgotten, the seat is held by nobody (leader = ':0:<id>') until all have told
-- (told.lua), for one lease at most: no leader, no claim, no change by an operator meanwhile.
-- How many beats were acknowledged before is kept: who saw more of them knows that something is lost (told.lua). Instants
-- would not do, since clocks step.
-- KEYS: generation, leader, version, events
-- ARGV: the server's run id, id of a history to be begun, id of the history that the caller has told all that it remembers
--   or '', lease ms
-- reply: {id, 'kept'}, {id, 'new'} (there was nothing, and the caller remembers nothing), {id, 'begun'} (another history)
--   or {id, 'reopened'} (whoever began it remembered nothing; the caller does)
-- Repeatable: what has been begun is kept. Freeing first: gets through when memory is full. No key of another type refuses
-- it, or nobody could connect: a generation that is none counts as gone.
local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
local server, new, told = ARGV[1], ARGV[2], ARGV[3]
local found = redis.pcall('HMGET', KEYS[1], 'id', 'server', 'former', 'floor', 'roster', 'beats', 'beat')
local id, former = found[1], found[3]
local version = redis.pcall('GET', KEYS[3])
version = type(version) == 'string' and tonumber(version) or 0

local function hold()
  redis.call('SET', KEYS[2], ':0:' .. id, 'PX', ARGV[4])
  redis.pcall('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'event', 'recovering', 'what', id)
end

if id and found[2] == server then
  if former ~= '' or told == '' or told == id then return {id, 'kept'} end
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'former', told, 'opened', 1, 'gone', 1, 'left', 0, 'left_at', 0, 'cause', 'its keys were gone')
  hold()
  return {id, 'reopened'}
end
local cause = id and 'it was restarted, or another server took over' or told ~= '' and 'its keys were gone' or ''
local gone, restored = id and '' or '1', id and string.format('%.0f', version) or '0'
former, id = id or told, new
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'id', id, 'server', server, 'former', former, 'cause', cause, 'gone', gone, 'restored', restored, 'began', now,
  'left', found[6] or 0, 'left_at', found[7] or 0, 'beats', found[6] or 0, 'beat', found[7] or 0,
  'floor', found[4] or 0, 'roster', found[5] or 0)
if cause == '' then return {id, 'new'} end
redis.call('DEL', KEYS[2])
-- Not one that anybody remembers: the catalog is read again by all.
redis.call('SET', KEYS[3], string.format('%.0f', math.max(version + 1, tonumber(now))))
hold()
return {id, 'begun'}
