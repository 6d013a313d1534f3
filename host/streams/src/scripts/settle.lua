#!lua
-- Carries out commits and dead letters: for each message whose lease still holds, its outputs, then its ack, or nothing.
--
-- KEYS: 1 input stream, 2 ledger, 3 park hash, 4 dead letters, 5.. output streams
-- ARGV: group, consumer, first id, last id, ids to scan, delete entries after the ack (0/1), n, then n times
--   id, token, -1, number of fields and values, fields and values          a dead letter
--   id, token, outputs, then for each: key index, number, fields and values   a commit; 0 outputs is a filtered message
-- Returns n numbers: 1 done, 0 the lease is lost, 2 an output key is not a stream (nothing written for that message).
local input, ledger, park, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, me, n = ARGV[1], ARGV[2], tonumber(ARGV[7])

-- A failed command does not roll back what a script has already written, so every check comes before the first write.
local unusable = {}
for k = 4, #KEYS do
  local kind = redis.call('TYPE', KEYS[k]).ok
  if kind ~= 'stream' and kind ~= 'none' then unusable[k] = true end
end
if unusable[4] then return redis.error_reply('BADDEAD ' .. dead .. ' is not a stream') end

-- The fence: only the latest holder of an entry, by consumer and delivery counter, may settle it.
local held = {}
for _, p in ipairs(redis.call('XPENDING', input, group, ARGV[3], ARGV[4], ARGV[5], me)) do held[p[1]] = p[4] end

local results, acks = {}, {}
local committed, filtered, died, outputs = 0, 0, 0, 0

-- XADD can still fail on a stream whose last id is the greatest there is. What this message has written goes again then.
local function add(written, key, from, to)
  local id = redis.pcall('XADD', key, '*', unpack(ARGV, from, to))
  if type(id) == 'table' then
    for _, w in ipairs(written) do redis.call('XDEL', w[1], w[2]) end
    return false
  end
  written[#written + 1] = {key, id}
  return true
end

local a = 8
for i = 1, n do
  local id, token, count = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  a = a + 3
  local ok = held[id] == token -- fence
  if count < 0 then
    local size = tonumber(ARGV[a])
    if ok then
      local fields = {}
      for f = a + 1, a + size do fields[#fields + 1] = ARGV[f] end
      -- The evidence: the original entry, byte for byte, as far as one command can carry it.
      local entry = redis.call('XRANGE', input, id, id)[1]
      if entry then
        for f = 1, math.min(#entry[2], 6000), 2 do
          fields[#fields + 1] = 'orig:' .. entry[2][f]
          fields[#fields + 1] = entry[2][f + 1]
        end
      end
      redis.call('XADD', dead, '*', unpack(fields))
      died = died + 1
      acks[#acks + 1] = id
    end
    results[i] = ok and 1 or 0
    a = a + 1 + size
  else
    local usable, written, wrote = true, {}, 0
    for o = 1, count do
      local key, size = tonumber(ARGV[a]) + 4, tonumber(ARGV[a + 1])
      if unusable[key] then usable = false end
      if ok and usable then usable = add(written, KEYS[key], a + 2, a + 1 + size) end
      a = a + 2 + size
    end
    if ok and not usable then
      -- An earlier output of the same message may have gone to a good key before the bad one was met.
      for _, w in ipairs(written) do redis.call('XDEL', w[1], w[2]) end
      results[i] = 2
    elseif ok then
      if count == 0 then filtered = filtered + 1 else committed = committed + 1 end
      outputs = outputs + count
      acks[#acks + 1] = id
      results[i] = 1
    else
      results[i] = 0
    end
  end
end

if #acks > 0 then
  redis.call('XACK', input, group, unpack(acks))
  if ARGV[6] == '1' then redis.call('XDEL', input, unpack(acks)) end
  local copies = {}
  if redis.call('EXISTS', park) == 1 then
    for _, id in ipairs(acks) do copies[#copies + 1] = id; copies[#copies + 1] = id .. ':entry' end
    redis.call('HDEL', park, unpack(copies))
  end
  if committed > 0 then redis.call('HINCRBY', ledger, 'committed', committed) end
  if filtered > 0 then redis.call('HINCRBY', ledger, 'filtered', filtered) end
  if died > 0 then redis.call('HINCRBY', ledger, 'dead', died) end
  if outputs > 0 then redis.call('HINCRBY', ledger, 'outputs', outputs) end
  -- The floor: where a group that was lost must stand again so that nothing unfinished is missed.
  local pending = redis.call('XPENDING', input, group)
  local floor = acks[#acks]
  if pending[1] > 0 then
    local ms, seq = string.match(pending[2], '(%d+)-(%d+)')
    if seq == '0' then
      floor = string.format('%.0f', tonumber(ms) - 1) .. '-18446744073709551615'
    else
      floor = ms .. '-' .. string.format('%.0f', tonumber(seq) - 1)
    end
  end
  redis.call('HSET', ledger, 'last_id', acks[#acks], 'floor', floor)
end
return results
