-- Extend the leader's lease if, and only if, this candidacy still leads; never creates it.
-- KEYS: leader, due, version   ARGV: worker:epoch:nonce, lease ms
-- reply: {'renewed', Redis ms, minimum of due or '', version, maximum of due or ''} or {'lost', holder's value or ''}
-- Repeatable: compares the whole value.
local held = redis.call('GET', KEYS[1])
if held ~= ARGV[1] then return {'lost', held or ''} end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
local version = redis.pcall('GET', KEYS[3]) -- broken, it is told by whoever needs it, and nobody stops leading
if type(version) ~= 'string' or not string.match(version, '^%d+$') then version = '0' end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local clock = redis.call('TIME')
return {'renewed', clock[1] * 1000 + math.floor(clock[2] / 1000), first or '', version, last or ''}
