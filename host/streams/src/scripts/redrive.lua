#!lua
-- Moves one dead letter to the redrive stream of the group that gave up on it. Twice is a no-op: the second finds nothing.
--
-- KEYS: 1 dead letters, 2 redrive stream
-- ARGV: dead letter id, group, number of fields and values, fields and values
-- Returns the new entry's id, or '' when the dead letter is gone.
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return '' end
local fields = {}
for i = 4, 3 + tonumber(ARGV[3]) do fields[#fields + 1] = ARGV[i] end
local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
-- A group that has never read its redrive stream must find this entry when it comes.
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[2], '0')
redis.call('XDEL', KEYS[1], ARGV[1])
return id
