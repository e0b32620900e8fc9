-- Strike runs off retold, once their tasks have been moved past the slots of these.
-- KEYS: leader, due, retold   ARGV: worker:epoch:nonce; then for each run: run id, task, slot ms
-- reply: 'deposed', or how many were struck off; one whose slot is open still, or whose task has no due instant, stays
-- Repeatable: a run goes once. Freeing first: gets through when memory is full.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'deposed' end
redis.call('HLEN', KEYS[3])
local passed = {}
for i = 2, #ARGV, 3 do
  local due = redis.call('ZSCORE', KEYS[2], 't/' .. ARGV[i + 1])
  if due and tonumber(due) > tonumber(ARGV[i + 2]) then passed[#passed + 1] = ARGV[i] end
end
local struck = 0
for _, id in ipairs(passed) do struck = struck + redis.call('HDEL', KEYS[3], id) end
return struck
