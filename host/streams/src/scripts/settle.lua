#!lua
-- Carries out commits and dead letters: for each message whose lease still holds, its outputs, then its ack, or nothing.
--
-- KEYS: 1 input stream, 2 ledger, 3 park hash, 4 dead letters, 5.. output streams
-- ARGV: group, consumer, first id, last id, ids to scan, delete entries after the ack (0/1), now,
--   epoch of the owner and how many messages it has finished under it ('' twice when the lane keeps no order), v, then v times
--   plugin, digest of the version, digest of its configuration
-- then n, then n times
--   id, token, -1, number of fields and values, fields and values                                a dead letter
--   id, token, number of outputs (0 is a filtered message), version, hops, then for each output    a commit
--     key index, message id, payload, priority, source, number of further fields and values, fields and values
-- What is the same for many outputs is sent once: each argument costs Redis more than what is done with it.
-- Returns n numbers: 1 done, 0 the lease is lost, 2 an output key is not a stream, 4 the dead letters take nothing (nothing
-- written for that message).
-- include less.lua
-- include need.lua
-- include owns.lua
local input, ledger, park, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, me, now = ARGV[1], ARGV[2], ARGV[7]

-- A failed command does not roll back what a script has already written, so every check comes before the first write.
local unusable = {}
for k = 4, #KEYS do
  local kind = redis.call('TYPE', KEYS[k]).ok
  if kind ~= 'stream' and kind ~= 'none' then unusable[k] = true end
end
for _, hash in ipairs({ledger, park}) do
  local kind = redis.call('TYPE', hash).ok
  if kind ~= 'hash' and kind ~= 'none' then return redis.error_reply('WRONGTYPE ' .. hash .. ' is not a hash') end
end
local needed = {
  {'XRANGE', input, '-', '+'}, {'XACK', input, group, '0-1'}, {'XDEL', input, '0-1'}, {'EXISTS', park}, {'HDEL', park, 'x'},
  {'HGET', ledger, 'x'}, {'HSET', ledger, 'x', 'x'}, {'HINCRBY', ledger, 'x', 1},
}
for k = 4, #KEYS do
  needed[#needed + 1] = {'XADD', KEYS[k], '*', 'x', 'x'}
  needed[#needed + 1] = {'XDEL', KEYS[k], '0-1'}
end
need(needed)
if unusable[4] then return redis.error_reply('BADDEAD ' .. dead .. ' is not a stream') end

-- The fence: only the latest holder of an entry, by consumer and delivery counter, may settle it; where an order is kept, only
-- while it owns the lane and everything that it has finished is finished still. A failover may take some of that back, and what
-- came behind it would be out of its turn.
local held, ordered = {}, ARGV[8] ~= ''
if owns(ledger, me, ARGV[8]) and (not ordered or (redis.call('HGET', ledger, 'finished') or '0') == ARGV[9]) then
  for _, p in ipairs(redis.call('XPENDING', input, group, ARGV[3], ARGV[4], ARGV[5], me)) do held[p[1]] = p[4] end
end

local results, acks = {}, {}
local committed, filtered, died, dead_bytes, outputs = 0, 0, 0, 0, 0

local versions, a = {}, 11
for v = 1, tonumber(ARGV[10]) do
  versions[v] = {ARGV[a], ARGV[a + 1], ARGV[a + 2]}
  a = a + 3
end

-- XADD can still fail on a stream whose last id is the greatest there is: then its reply is an error, a table.
local function add(key, o, version, hops)
  local extra = tonumber(ARGV[o + 5])
  return redis.pcall('XADD', key, '*', 'message_id', ARGV[o + 1], 'payload', ARGV[o + 2], 'priority', ARGV[o + 3],
    'timestamp', now, 'producer_id', version[1], 'retry_count', '0', 'max_retries', '3',
    'cofferdam_plugin', version[1], 'cofferdam_digest', version[2], 'cofferdam_config', version[3],
    'cofferdam_source', ARGV[o + 4], 'cofferdam_hops', hops, unpack(ARGV, o + 6, o + 5 + extra))
end

local n = tonumber(ARGV[a])
a = a + 1
for i = 1, n do
  local id, token, count = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  a = a + 3
  local ok = held[id] == token -- fence
  -- Whoever is in a batch twice is settled once.
  held[id] = nil
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
      if entry and #entry[2] > 6000 then
        fields[#fields + 1] = 'orig_truncated'
        fields[#fields + 1] = 'true'
      end
      -- What a quota counts, and what a redrive or a discard takes back.
      local bytes = 0
      for f = 1, #fields do bytes = bytes + #fields[f] end
      fields[#fields + 1] = 'bytes'
      fields[#fields + 1] = tostring(bytes)
      local put = redis.pcall('XADD', dead, '*', unpack(fields))
      if type(put) == 'table' then
        results[i] = 4
      else
        died = died + 1
        dead_bytes = dead_bytes + bytes
        acks[#acks + 1] = id
        results[i] = 1
      end
    else
      results[i] = 0
    end
    a = a + 1 + size
  else
    local usable, version, hops = true, versions[tonumber(ARGV[a])], ARGV[a + 1]
    local written = count > 1 and {}
    a = a + 2
    for o = 1, count do
      local key = tonumber(ARGV[a]) + 4
      if unusable[key] then usable = false end
      if ok and usable then
        local id = add(KEYS[key], a, version, hops)
        if type(id) == 'table' then usable = false elseif written then written[o] = {KEYS[key], id} end
      end
      a = a + 6 + tonumber(ARGV[a + 5])
    end
    if ok and not usable then
      -- An earlier output of the same message may have gone to a good key before the bad one was met.
      for _, w in ipairs(written or {}) do redis.call('XDEL', w[1], w[2]) end
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
  if died > 0 then
    redis.call('HINCRBY', ledger, 'dead', died)
    redis.call('HINCRBY', ledger, 'dead_bytes', dead_bytes)
  end
  if outputs > 0 then redis.call('HINCRBY', ledger, 'outputs', outputs) end
  if ordered then redis.call('HINCRBY', ledger, 'finished', #acks) end
  -- The floor: where a group that was lost must stand again so that nothing unfinished is missed. '<id' stands for just
  -- before that id: the sum is the host's to do, because a number of Lua cannot hold every sequence.
  local pending = redis.call('XPENDING', input, group)
  local floor = acks[#acks]
  if pending[1] > 0 then
    floor = '<' .. pending[2]
  else
    -- A late retry does not move it back.
    local known = redis.call('HGET', ledger, 'floor')
    if known and string.sub(known, 1, 1) ~= '<' and less(floor, known) then floor = known end
  end
  redis.call('HSET', ledger, 'last_id', acks[#acks], 'floor', floor)
end
return results
