-- Stop leading, and say so, so that followers need not wait for the lease.
-- KEYS: leader, events   ARGV: worker:epoch:nonce
-- reply: 1 resigned, 0 led no longer
-- Repeatable: compares the whole value. Frees first: gets through when memory is full.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('XLEN', KEYS[2])
redis.call('DEL', KEYS[1])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'event', 'resigned', 'who', ARGV[1])
return 1
