-- Pause tasks, or resume them: several at once, in one event.
-- KEYS: paused, version, events, once:<operation>, leader
-- ARGV: who, until ms or 0 for no end or '' to resume, details (opaque JSON); then the tasks
-- reply: for each task 1 changed, 0 was so already; or the error RECOVERING (see lib.lua): pauses are being restored
-- Repeatable: the answer is kept for its repeat. Growing first: refused whole when memory is full.
if string.sub(redis.call('GET', KEYS[5]) or '', 1, 1) == ':' then
  return redis.error_reply('RECOVERING what was forgotten is being told again')
end
local version = redis.call('GET', KEYS[2]) or '0'
if not string.match(version, '^%d+$') or #version > 15 then
  return redis.error_reply(string.format('MALFORMED %s holds what is no number', KEYS[2]))
end
redis.call('XLEN', KEYS[3])
local before, replies = redis.call('GET', KEYS[4]), {}
if before then
  for digit in string.gmatch(before, '%d') do replies[#replies + 1] = tonumber(digit) end
  return replies
end
local value, changed, seen = ARGV[2] == '' and '' or ARGV[2] .. '|' .. ARGV[3], {}, {}
for i = 4, #ARGV do
  local task = ARGV[i]
  local differs = not seen[task] and (redis.call('HGET', KEYS[1], task) or '') ~= value
  seen[task], replies[#replies + 1] = true, differs and 1 or 0
  if differs then changed[#changed + 1] = task end
end
redis.call('SET', KEYS[4], table.concat(replies), 'EX', 600)
if #changed == 0 then return replies end
for _, task in ipairs(changed) do
  if value == '' then
    redis.call('HDEL', KEYS[1], task)
  else
    redis.call('HSET', KEYS[1], task, value)
  end
end
redis.call('INCR', KEYS[2])
local event = {'event', value == '' and 'resumed' or 'paused', 'what', table.concat(changed, ' '), 'who', ARGV[1]}
if value ~= '' then
  for _, word in ipairs({'until', ARGV[2], 'details', ARGV[3]}) do event[#event + 1] = word end
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', unpack(event))
return replies
