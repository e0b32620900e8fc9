-- Extend the leader's lease if, and only if, this candidacy still leads; never creates it.
-- KEYS: leader, due, version   ARGV: worker:epoch:nonce, lease ms
-- reply: {'renewed', Redis ms, minimum of due or '', version} or {'lost', holder's value or ''}
-- Repeatable: compares the whole value.
local held = redis.call('GET', KEYS[1])
if held ~= ARGV[1] then return {'lost', held or ''} end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
local version = redis.call('GET', KEYS[3]) or '0'
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local clock = redis.call('TIME')
return {'renewed', clock[1] * 1000 + math.floor(clock[2] / 1000), first or '', version}
