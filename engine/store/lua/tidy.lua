-- Look through members of due, or of leases: set aside what is none, and mend a score that is no instant.
-- KEYS: due or leases, aside, what every run's key begins with
-- ARGV: 'due' or 'leases', first rank, how many, the longest that a lease may have left ms
-- reply: {how many are left of those looked at, {member, score, what was done, ...}}; done is 'aside', 'unscheduled' (a
--   task, whose leader gives it its next instant) or 'now' (a run that was due, or a lease that ends, nobody knows when)
-- Repeatable: what was set aside is gone, what was mended is fine. Freeing first: gets through when memory is full.
local kind, RUNS = ARGV[1], KEYS[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local longest = kind == 'due' and 2 ^ 53 or now + ARGV[4]
local found = redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[2] + ARGV[3] - 1, 'WITHSCORES')
redis.call('XLEN', KEYS[2])
local done, acts = {}, {}
local function note(member, score, word)
  done[#done + 1], done[#done + 2], done[#done + 3] = member, score, word
  acts[#acts + 1] = {member, score, word}
end
for i = 1, #found, 2 do
  local member, score = found[i], found[i + 1]
  local instant = tonumber(score)
  local fine = instant and instant >= 0 and instant <= longest and instant == math.floor(instant)
  local run = string.match(member, kind == 'due' and '^r/([^/]+/[^/]+@[^@/]+)$' or '^([^/]+/[^/]+@[^@/]+)#%d+$')
  if kind == 'due' and string.find(member, '^t/[^/@]+/[^/@]+$') then
    if not fine then note(member, score, 'unscheduled') end
  elseif not run then
    note(member, score, 'aside')
  elseif not fine then
    local state = redis.pcall('HGET', RUNS .. run, 'state')
    note(member, score, type(state) == 'string' and 'now' or 'aside')
  end
end
local left = #found / 2
for _, act in ipairs(acts) do
  local member, score, word = act[1], act[2], act[3]
  redis.call('ZREM', KEYS[1], member)
  if word == 'now' then
    redis.call('ZADD', KEYS[1], now, member)
  else
    left = left - 1
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'key', KEYS[1], 'name', string.sub(member, 1, 500),
      'value', score)
  end
end
return {left, done}
