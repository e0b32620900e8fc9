-- Make a task at run time, or give it another definition.
-- KEYS: dynamic, version, events, once:<operation>, paused, leader   ARGV: task, definition (opaque JSON), revision to be replaced
--   or '' (a new task), who
-- reply: {'defined', revision}, {'unchanged', revision} (it is so already), {'taken', revision} (there is one, and none was
--   to be replaced, or it is being forgotten), {'changed', revision or 0} (another than the one to be replaced) or
--   {'broken', why}; a task that was withdrawn (revision|-) is a new one. Or the error RECOVERING (see lib.lua)
-- A new task is not paused: a pause that raced with the removal of its namesake is none of its own.
-- Repeatable: the answer is kept. Revisions come from the version, so none comes twice. Growing first: refused when memory
-- is full.
if string.sub(redis.call('GET', KEYS[6]) or '', 1, 1) == ':' then
  return redis.error_reply('RECOVERING what was forgotten is being told again')
end
redis.call('XLEN', KEYS[3])
redis.call('HLEN', KEYS[5])
local before = redis.call('GET', KEYS[4])
if before then
  local word, revision = string.match(before, '^(%a+) (%d+)$')
  return {word, revision}
end
local version = redis.call('GET', KEYS[2]) or '0'
if not string.match(version, '^%d+$') or #version > 15 then
  return redis.error_reply(string.format('MALFORMED %s holds what is no number', KEYS[2]))
end
local old = redis.call('HGET', KEYS[1], ARGV[1])
local revision, definition = '0', nil
if old then revision, definition = string.match(old, '^(%d+)|(.*)$') end
if not revision then return {'broken', 'the old definition is not ours'} end

local word = 'defined'
if definition == '-' then revision, definition = '0', nil end
if definition == '' or definition == '>-' then
  word = 'taken'
elseif definition == ARGV[2] then
  word = 'unchanged'
elseif ARGV[3] == '' and definition then
  word = 'taken'
elseif ARGV[3] ~= '' and ARGV[3] ~= revision then
  word = 'changed'
else
  revision = string.format('%.0f', version + 1)
end
redis.call('SET', KEYS[4], word .. ' ' .. revision, 'EX', 600)
if word == 'defined' then
  redis.call('HSET', KEYS[1], ARGV[1], revision .. '|' .. ARGV[2])
  if not definition then redis.call('HDEL', KEYS[5], ARGV[1]) end
  redis.call('INCR', KEYS[2])
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'event', 'defined', 'what', ARGV[1], 'who', ARGV[4])
end
return {word, revision}
