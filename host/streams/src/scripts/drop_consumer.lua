#!lua
-- Deletes a consumer only when it holds nothing: XGROUP DELCONSUMER deletes its pending entries with it, unasked.
--
-- KEYS: 1 stream
-- ARGV: group, consumer
-- Returns 1 deleted, 0 it still holds entries.
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
