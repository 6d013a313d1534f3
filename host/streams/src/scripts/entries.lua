#!lua flags=no-writes
-- Gives entries, from their parked copies where somebody trimmed them away.
--
-- KEYS: 1 stream, 2 park hash
-- ARGV: ids
-- Returns {id, fields}...; what is nowhere is left out.
local entries = {}
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  local copy = not entry and redis.call('HGET', KEYS[2], id .. ':entry')
  if copy then entry = {id, cmsgpack.unpack(copy)} end
  if entry then entries[#entries + 1] = entry end
end
return entries
