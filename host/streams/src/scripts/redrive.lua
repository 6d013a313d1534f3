#!lua
-- Moves one dead letter to the redrive stream of the group that gave up on it. Twice is a no-op: the second finds nothing.
--
-- KEYS: 1 dead letters, 2 redrive stream, 3 ledger of the lane that gave up
-- ARGV: dead letter id, group, number of fields and values, fields and values
-- Returns the new entry's id, or '' when the dead letter is gone.
-- include need.lua
local letter = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not letter then return '' end
need({
  {'XADD', KEYS[2], '*', 'x', 'x'}, {'XDEL', KEYS[1], ARGV[1]}, {'EXISTS', KEYS[3]}, {'HINCRBY', KEYS[3], 'dead_bytes', 1},
})
local fields = {}
for i = 4, 3 + tonumber(ARGV[3]) do fields[#fields + 1] = ARGV[i] end
local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
-- A group that has never read its redrive stream must find this entry when it comes.
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[2], '0')
redis.call('XDEL', KEYS[1], ARGV[1])
for f = 1, #letter[2], 2 do
  -- A ledger that was removed with its plugin stays removed.
  if letter[2][f] == 'bytes' and redis.call('EXISTS', KEYS[3]) == 1 then
    redis.call('HINCRBY', KEYS[3], 'dead_bytes', -(tonumber(letter[2][f + 1]) or 0))
  end
end
return id
