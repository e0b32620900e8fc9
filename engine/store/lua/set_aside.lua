-- Take an entry that names no run out of a stream of runs, and keep what it holds where nothing reads it.
-- KEYS: stream, aside   ARGV: entry
-- reply: 1 set aside, 0 there is no such entry (any longer)
-- Repeatable: an entry goes once. Freeing first: gets through when memory is full.
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
redis.call('XLEN', KEYS[2])
redis.call('XACK', KEYS[1], 'workers', ARGV[1])
if not entry then return 0 end
redis.call('XDEL', KEYS[1], ARGV[1])
local said = {}
for i, text in ipairs(entry[2]) do
  if i <= 20 then said[i] = string.sub(text, 1, 500) end
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'key', KEYS[1], 'name', ARGV[1], 'value', table.concat(said, ' '))
return 1
