-- Say what a process declares: one page of its set at a time, the set itself entered with the last page. With that, tasks
-- that an operator had removed may be readmitted: their marks in dynamic (revision|-) go.
-- The set that it takes the place of goes at once if no other worker has it.
-- KEYS: declared:<digest>, declarations, version, events, unused, dynamic, workers, declared:<set replaced>, leader
-- ARGV: digest, page number, page (opaque JSON), pages in all, the latest revision of a mark that may go, set replaced or
--   '', worker; then the tasks to be readmitted (with the last page)
-- reply: 'page' (more to come), 'declared' (a new set, or a task readmitted: the set is first seen now), 'known'; with
--   tasks to be readmitted, or the error RECOVERING (see lib.lua): marks are being restored
-- Repeatable: the same content again changes nothing, but that the set is in use now; a mark's revision is the version of
-- the catalog that it made, so one that came later stays. A new set grows first: refused when memory is full.
if #ARGV > 7 and string.sub(redis.call('GET', KEYS[9]) or '', 1, 1) == ':' then
  return redis.error_reply('RECOVERING what was forgotten is being told again')
end
local version = redis.call('GET', KEYS[3]) or '0'
if not string.match(version, '^%d+$') or #version > 15 then
  return redis.error_reply(string.format('MALFORMED %s holds what is no number', KEYS[3]))
end
redis.call('XLEN', KEYS[4])
redis.call('HLEN', KEYS[5])
redis.call('HLEN', KEYS[7])
local entered, latest, back = redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1, tonumber(ARGV[5]), {}
local known = redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) and entered -- somebody may have deleted its pages
for i = 8, #ARGV do
  local revision = string.match(redis.call('HGET', KEYS[6], ARGV[i]) or '', '^(%d+)|%-$')
  if revision and tonumber(revision) <= latest then back[#back + 1] = ARGV[i] end
end
local function replace()
  local said = ARGV[6] ~= '' and ARGV[6] ~= ARGV[1] and redis.call('HGETALL', KEYS[7])
  if not said then return end
  for i = 1, #said, 2 do
    if said[i] ~= ARGV[7] and string.find(said[i + 1], '"' .. ARGV[6] .. '"', 1, true) then return end
  end
  redis.call('HDEL', KEYS[2], ARGV[6])
  redis.call('HDEL', KEYS[5], ARGV[6])
  redis.call('DEL', KEYS[8])
end
local function tell()
  local clock = redis.call('TIME')
  redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000)))
  replace()
  for _, task in ipairs(back) do redis.call('HDEL', KEYS[6], task) end
  redis.call('INCR', KEYS[3])
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'event', 'declared', 'what', ARGV[1])
  return 'declared'
end
if known then
  redis.call('HDEL', KEYS[5], ARGV[1])
  return #back > 0 and tell() or 'known'
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
if redis.call('HLEN', KEYS[1]) < tonumber(ARGV[4]) then
  redis.call('EXPIRE', KEYS[1], 600) -- a set whose process died before its last page
  return 'page'
end
redis.call('PERSIST', KEYS[1])
return tell()
