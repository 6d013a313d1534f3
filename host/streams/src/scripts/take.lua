#!lua flags=allow-oom
-- Takes over pending entries of one consumer that have been idle long enough: parked entries now due (of the reserved
-- consumer), or the suspects of a silent host. Entries whose payload somebody trimmed away are saved from their parked copy
-- or leave a tombstone among the dead letters: nothing disappears unsaid.
--
-- KEYS: 1 input stream, 2 ledger, 3 park hash, 4 dead letters, 5 redrive stream of the group
-- ARGV: group, consumer, from which consumer, idle ms, count, now (ISO 8601), plugin, epoch of the owner ('' when the lane
--   keeps no order), n, then n times: id, token
-- With n = 0: up to `count` entries that have been idle for so long, which is the reserved consumer's longest delay. Otherwise:
-- of these entries, those that are still held under that token, however idle they look (a clock that was set back makes them
-- look busy for hours).
-- Returns {number of entries found, {id, new token, record or '', fields}...}
-- include clock.lua
-- include need.lua
-- include owns.lua
-- include save.lua
local input, ledger, park, dead, redrive = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, me, from = ARGV[1], ARGV[2], ARGV[3]
if not owns(ledger, me, ARGV[8]) then return {0} end
local found = {}
if ARGV[9] == '0' then
  local longest = tonumber(ARGV[4])
  local gone = mind_the_clock(input, ledger, group, from, longest, true)
  found = redis.call('XPENDING', input, group, 'IDLE', longest, '-', '+', ARGV[5], from)
  for _, p in ipairs(gone) do found[#found + 1] = p end
else
  for i = 10, 9 + 2 * tonumber(ARGV[9]), 2 do
    local p = redis.call('XPENDING', input, group, ARGV[i], ARGV[i], 1, from)[1]
    if p and p[4] == tonumber(ARGV[i + 1]) then found[#found + 1] = p end -- fence
  end
end
local taken = {#found}
for _, p in ipairs(found) do
  local id, token = p[1], p[4] + 1
  local record = redis.call('HGET', park, id) or ''
  local entry = redis.call('XRANGE', input, id, id)[1]
  if entry then
    redis.call('XCLAIM', input, group, me, 0, id)
    taken[#taken + 1] = {id, token, record, entry[2]}
  else
    -- XCLAIM would drop the pending entry of a payload that is gone without a word, so it is not asked.
    save({input = input, ledger = ledger, park = park, dead = dead, redrive = redrive}, group, id, record, ARGV[6], ARGV[7])
    redis.call('XACK', input, group, id)
    redis.call('HDEL', park, id, id .. ':entry')
    -- For the owner of a lane that keeps an order it is finished, and a failover may take that back too.
    if ARGV[8] ~= '' then redis.call('HINCRBY', ledger, 'finished', 1) end
  end
end
return taken
