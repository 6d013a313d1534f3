#!lua flags=allow-oom
-- Deletes one dead letter for good. Twice is a no-op: the second finds nothing, and nothing is on record of it.
--
-- KEYS: 1 dead letters, 2 ledger of the lane that gave up, 3 operator log
-- ARGV: dead letter id, then fields and values of the act
-- Returns 1, or 0 when the dead letter is gone.
-- include need.lua
-- include leave.lua
local letter = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not letter then return 0 end
may_leave(KEYS[1], ARGV[1], KEYS[2], KEYS[3])
leave(KEYS[1], letter, KEYS[2], KEYS[3], {unpack(ARGV, 2)})
return 1
