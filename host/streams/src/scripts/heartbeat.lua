#!lua flags=allow-oom
-- Renews the lease of what this consumer still holds. Fenced: an unfenced XCLAIM JUSTID steals from the new owner.
--
-- KEYS: 1 input stream
-- ARGV: group, consumer, first id, last id, ids to scan, n, then n times: id, token
-- Returns the ids whose lease is lost.
local input, group, me, n = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[6])
local held = {}
for _, p in ipairs(redis.call('XPENDING', input, group, ARGV[3], ARGV[4], ARGV[5], me)) do held[p[1]] = p[4] end
local lost = {}
for i = 1, n do
  local id, token = ARGV[5 + 2 * i], tonumber(ARGV[6 + 2 * i])
  if held[id] ~= token then -- fence
    lost[#lost + 1] = id
  elseif #redis.call('XRANGE', input, id, id) == 1 then
    -- A claim of an entry that was trimmed would drop it from the pending list; its holder can still settle it.
    redis.call('XCLAIM', input, group, me, 0, id, 'JUSTID')
  end
end
return lost
