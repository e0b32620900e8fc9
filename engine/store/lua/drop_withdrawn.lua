-- Forget that tasks were removed which processes went on declaring: nobody declares them any longer.
-- KEYS: leader, version, dynamic   ARGV: worker:epoch:nonce, version of the catalog in which no set names them; then the tasks
-- reply: 'deposed', or for each task 'dropped', 'changed' (by now a set may name it: nothing was written) or 'gone' (it has
--   no such mark)
-- Repeatable: a mark goes once. Nothing that exists changes by it, so the version stays. Freeing: gets through when memory
-- is full.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'deposed' end
local current, replies = (redis.call('GET', KEYS[2]) or '0') == ARGV[2], {}
for i = 3, #ARGV do
  local value = redis.call('HGET', KEYS[3], ARGV[i]) or ''
  replies[i - 2] = not current and 'changed' or string.match(value, '^%d+|%-$') and 'dropped' or 'gone'
end
for i, reply in ipairs(replies) do
  if reply == 'dropped' then redis.call('HDEL', KEYS[3], ARGV[i + 2]) end
end
return replies
