-- Forget declared sets that no worker has had for retire_after; of the others, note since when no worker has them.
-- KEYS: leader, declarations, version, events, unused, workers; then declared:<digest> for each
-- ARGV: worker:epoch:nonce, retire_after ms; then the digests
-- reply: 'deposed', or for each digest 'used', 'unused' (not for long enough), 'retired' or 'gone' (no such set)
-- Repeatable: a set goes once. A presence that names the set counts until its worker is buried, and declaring a set again begins anew.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'deposed' end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local version = redis.call('GET', KEYS[3]) or '0'
if not string.match(version, '^%d+$') or #version > 15 then
  return redis.error_reply(string.format('MALFORMED %s holds what is no number', KEYS[3]))
end
redis.call('XLEN', KEYS[4])
redis.call('HLEN', KEYS[5])
local presences, replies = redis.call('HVALS', KEYS[6]), {}
local function used(digest)
  for _, presence in ipairs(presences) do
    if string.find(presence, '"' .. digest .. '"', 1, true) then return true end -- whatever it calls it: it may have several
  end
  return false
end
for i = 3, #ARGV do
  local since = tonumber(redis.call('HGET', KEYS[5], ARGV[i]) or nil)
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then
    replies[#replies + 1] = 'gone'
  elseif used(ARGV[i]) then
    replies[#replies + 1] = 'used'
  elseif since and now - since >= tonumber(ARGV[2]) then
    replies[#replies + 1] = 'retired'
  else
    replies[#replies + 1] = since and 'unused' or 'unused from now on'
  end
end
for i, reply in ipairs(replies) do
  local digest = ARGV[i + 2]
  if reply == 'unused from now on' then
    redis.call('HSET', KEYS[5], digest, string.format('%.0f', now))
    replies[i] = 'unused'
  elseif reply ~= 'unused' then
    redis.call('HDEL', KEYS[5], digest)
  end
  if reply == 'retired' then
    redis.call('HDEL', KEYS[2], digest)
    redis.call('DEL', KEYS[i + 6])
    redis.call('INCR', KEYS[3])
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'event', 'retired', 'what', digest)
  end
end
return replies
