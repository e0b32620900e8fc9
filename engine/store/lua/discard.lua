--#include lib
-- Give up dead runs for good.
-- KEYS: no items; the last is once:<operation>   ARGV[2] who; then entries of dead
-- reply: for each entry 'discarded', 'gone' (no such entry) or {'broken', why}
-- Repeatable: the answer is kept. Freeing first.
local function entry(i) return ARGV[2 + i] end
return once(KEYS[#KEYS], 'discarded', ARGV[2], #ARGV - 2, function(i)
  if #redis.call('XRANGE', DEAD, entry(i), entry(i)) == 0 then return 'gone' end
  return 'discarded', function() redis.call('XDEL', DEAD, entry(i)) end
end, entry)
