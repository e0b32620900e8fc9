-- Write something, so that WAIT behind it waits for all that was written before: also when the script in between had
-- been done by an earlier try, over another connection, and wrote nothing this time. From 7.2 on WAIT is about what the
-- connection itself has written.
-- KEYS: mark   ARGV: none
-- reply: none
-- Repeatable: it means nothing. Freeing first: gets through when memory is full.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], '', 'EX', 600)
