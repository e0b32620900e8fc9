-- Agree on the version of the schema: the first worker writes it, all later ones compare.
-- KEYS: meta   ARGV: version of the caller
-- reply: the version that is there now
-- Repeatable: what is there is never changed.
local found = redis.call('HGET', KEYS[1], 'schema')
if found then return found end
redis.call('HSET', KEYS[1], 'schema', ARGV[1])
return ARGV[1]
