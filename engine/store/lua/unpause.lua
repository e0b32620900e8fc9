-- Remove the pauses that have ended by themselves.
-- KEYS: paused   ARGV: none
-- reply: how many
-- Repeatable: those are gone. Nothing changes for anybody, since each ends by its own instant: no version, no event.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ended, found = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #found, 2 do
  local till = tonumber(string.match(found[i + 1], '^%d+'))
  if till and till > 0 and till <= now then ended[#ended + 1] = found[i] end
end
for _, task in ipairs(ended) do redis.call('HDEL', KEYS[1], task) end
return #ended
