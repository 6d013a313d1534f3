#!lua flags=allow-oom
-- Parks failed or released deliveries: pending under the reserved consumer, out of everybody's way, until they are due.
-- allow-oom, because a Redis at its memory limit must still let go of work (and XCLAIM is refused without the flag).
--
-- KEYS: 1 input stream, 2 ledger, 3 park hash
-- ARGV: group, consumer, reserved consumer, its longest delay in ms, n, then n times: id, token, delay in ms, kind, record
-- Returns n numbers: 1 parked, 0 the lease is lost, 3 the entry is gone from the stream (nothing written).
-- include clock.lua
local input, ledger, park = KEYS[1], KEYS[2], KEYS[3]
local group, me, retry, longest, n = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
mind_the_clock(input, ledger, group, retry, longest, false)
local results, counts = {}, {}
local a = 6
for i = 1, n do
  local id, token, delay, kind, record = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), ARGV[a + 3], ARGV[a + 4]
  a = a + 5
  local p = redis.call('XPENDING', input, group, id, id, 1, me)[1]
  local ok = p and p[4] == token -- fence
  local entry = ok and redis.call('XRANGE', input, id, id)[1]
  if not ok then
    results[i] = 0
  elseif not entry then
    results[i] = 3
  else
    -- A copy of the entry, so that a foreign trim cannot take a message that is waiting for its retry.
    redis.call('HSETNX', park, id .. ':entry', cmsgpack.pack(entry[2]))
    redis.call('HSET', park, id, record)
    redis.call('XCLAIM', input, group, retry, 0, id, 'IDLE', longest - delay, 'JUSTID')
    counts[kind] = (counts[kind] or 0) + 1
    results[i] = 1
  end
end
for kind, count in pairs(counts) do redis.call('HINCRBY', ledger, kind, count) end
return results
