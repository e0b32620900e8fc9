-- Stop leading, and say so, so that followers need not wait for the lease. That candidacy is over for good: a repeat of
-- its election that is still on its way would hold the seat, with nobody in it, for a lease.
-- KEYS: leader, events, once:<worker>:<nonce>   ARGV: worker:epoch:nonce, or worker::nonce if the answer to its election was lost
-- reply: 1 resigned, 0 led no longer, or not yet
-- Repeatable: compares the whole value, or all of it that is known. Frees first: gets through when memory is full.
local held = redis.call('GET', KEYS[1])
local worker, nonce = string.match(ARGV[1], '^(.+)::([^:]+)$')
local leads = held == ARGV[1]
if worker and held then
  local holder, _, theirs = string.match(held, '^(.*):(%d+):([^:]*)$')
  leads = holder == worker and theirs == nonce
end
if not (leads or worker) then return 0 end
redis.call('XLEN', KEYS[2])
redis.call('GET', KEYS[3])
redis.call('DEL', leads and KEYS[1] or KEYS[3])
redis.call('SET', KEYS[3], 'resigned', 'EX', 600)
if not leads then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'event', 'resigned', 'who', held)
return 1
