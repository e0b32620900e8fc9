-- How tasks fare: the runs of each that have not ended, its retries, and its newest verdict.
-- KEYS: due, what every run's key begins with; then for each task: live, ledger   ARGV: none
-- reply: for each task {{run, state, ...}, {{run, due ms, attempt}, ...} of the runs that wait, the newest ledger entry or
--   an empty array} or {'broken', why}
-- Repeatable: it only reads.
local DUE, RUNS = KEYS[1], KEYS[2]
local function look(live, ledger)
  local runs, waiting = redis.call('HGETALL', live), {}
  for i = 1, #runs, 2 do
    if runs[i + 1] == 'waiting' then
      local due = redis.call('ZSCORE', DUE, 'r/' .. runs[i])
      local attempt = redis.call('HGET', RUNS .. runs[i], 'attempt')
      if due and attempt then waiting[#waiting + 1] = {runs[i], due, attempt} end
    end
  end
  return {runs, waiting, redis.call('XREVRANGE', ledger, '+', '-', 'COUNT', 1)[1] or {}}
end
local replies = {}
for i = 3, #KEYS, 2 do
  local fine, reply = pcall(look, KEYS[i], KEYS[i + 1])
  replies[#replies + 1] = fine and reply or {'broken', type(reply) == 'table' and reply.err or tostring(reply)}
end
return replies
