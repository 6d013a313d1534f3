#!lua flags=allow-oom
-- Gives a lane up, so that whoever stands by need not wait for a lease. The epoch stays: the next owner raises it.
--
-- KEYS: 1 ledger
-- ARGV: consumer, its epoch
-- Returns 1 given up, 0 it was not its owner.
-- include owns.lua
if not owns(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'owner', '')
return 1
