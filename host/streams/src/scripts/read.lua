#!lua flags=allow-oom
-- Reads new entries, for the owner of a lane only: what an earlier owner asked for late would come out of order.
--
-- KEYS: 1 stream, 2 ledger
-- ARGV: group, consumer, epoch, count
-- Returns what XREADGROUP does; nothing for whoever is not the owner.
-- include owns.lua
if not owns(KEYS[2], ARGV[2], ARGV[3]) then return false end
return redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[4], 'STREAMS', KEYS[1], '>')
