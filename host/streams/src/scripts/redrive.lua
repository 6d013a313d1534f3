#!lua
-- Moves one dead letter to the redrive stream of the group that gave up on it. Twice is a no-op: the second finds nothing, and
-- nothing is on record of it.
--
-- KEYS: 1 dead letters, 2 redrive stream, 3 ledger of the lane that gave up, 4 operator log
-- ARGV: dead letter id, group, number of fields and values, fields and values, then fields and values of the act
-- Returns the new entry's id, or '' when the dead letter is gone.
-- include need.lua
-- include leave.lua
local letter = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not letter then return '' end
need({{'XADD', KEYS[2], '*', 'x', 'x'}})
may_leave(KEYS[1], ARGV[1], KEYS[3], KEYS[4])
local fields, act = {}, {}
local last = 3 + tonumber(ARGV[3])
for i = 4, last do fields[#fields + 1] = ARGV[i] end
for i = last + 1, #ARGV do act[#act + 1] = ARGV[i] end
local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
-- A group that has never read its redrive stream must find this entry when it comes.
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[2], '0')
act[#act + 1] = 'sent_as'
act[#act + 1] = id
leave(KEYS[1], letter, KEYS[3], KEYS[4], act)
return id
