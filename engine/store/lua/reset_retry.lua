--#include lib
-- Retries that wait become due now.
-- KEYS: the last is once:<operation>   ARGV[2] who, ARGV[3] most runs in this call; then the task of each item
-- reply: for each item {runs that became due, runs left for another call} or {'broken', why}
-- Repeatable: the answer is kept. Grows nothing: gets through when memory is full.
local function task(i) return ARGV[3 + i] end
local room = tonumber(ARGV[3])
return once(KEYS[#KEYS], 'retries reset', ARGV[2], #ARGV - 3, function(i)
  local found, due, left = redis.call('HGETALL', item(i, '').live), {}, 0
  for at = 1, #found, 2 do
    local member = 'r/' .. found[at]
    local score = found[at + 1] == 'waiting' and redis.call('ZSCORE', DUE, member)
    if score and tonumber(score) > NOW then
      if room > #due then due[#due + 1] = member else left = left + 1 end
    end
  end
  room = room - #due
  return {#due, left}, #due > 0 and function()
    redis.call('ZREM', DUE, '')
    for _, member in ipairs(due) do
      redis.call('ZADD', DUE, 'XX', int(NOW), member)
      wake(member, NOW)
    end
  end or nil
end, task)
