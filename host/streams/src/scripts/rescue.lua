#!lua flags=allow-oom
-- Gives back what waited for its retry and is no longer pending: somebody deleted the reserved consumer, or the stream. The
-- copies in the park hash go the way of a redrive. Twice is a no-op: the second finds no copy.
--
-- KEYS: 1 input stream, 2 ledger, 3 park hash, 4 dead letters, 5 redrive stream of the group
-- ARGV: group, cursor into the park hash, count, now (ISO 8601), plugin
-- Returns {next cursor, number given back, number that left only a tombstone}
-- include less.lua
-- include need.lua
-- include save.lua
local input, ledger, park, dead, redrive = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group = ARGV[1]
if redis.call('TYPE', input).ok ~= 'stream' then return {'0', 0, 0} end
local position
for _, g in ipairs(redis.call('XINFO', 'GROUPS', input)) do
  local f = {}
  for i = 1, #g, 2 do f[g[i]] = g[i + 1] end
  if f['name'] == group then position = f['last-delivered-id'] end
end
-- Without its group nobody can tell what is pending: it is created again first.
if not position then return {'0', 0, 0} end
local page = redis.call('HSCAN', park, ARGV[2], 'COUNT', ARGV[3])
local back, stones = 0, 0
for f = 1, #page[2], 2 do
  local id = page[2][f]
  local lost = string.match(id, '^%d+%-%d+$') and #redis.call('XPENDING', input, group, id, id, 1) == 0
  -- A group that stands before it will read it once more.
  if lost and less(position, id) and redis.call('XRANGE', input, id, id)[1] then lost = false end
  if lost then
    local keys = {input = input, ledger = ledger, park = park, dead = dead, redrive = redrive}
    if save(keys, group, id, page[2][f + 1], ARGV[4], ARGV[5]) then back = back + 1 else stones = stones + 1 end
    redis.call('HDEL', park, id, id .. ':entry')
  end
end
return {page[1], back, stones}
