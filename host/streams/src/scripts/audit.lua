#!lua flags=no-writes,allow-oom
-- The numbers of one lane at one moment, without the entries that XINFO STREAM would send along.
--
-- KEYS: 1 stream, 2 ledger, 3 park hash, 4 what we have trimmed
-- ARGV: group, reserved consumer
-- Returns {} when the stream or the group is missing, else {length, entries added, trimmed by us, oldest id or '', newest id,
-- last delivered id, pending, entries read or -1, lag or -1, park records, pending of the reserved consumer, entries read
-- before the ledger began or -1, settled, bytes of dead letters}
local stream, ledger, group = KEYS[1], KEYS[2], ARGV[1]
if redis.call('TYPE', stream).ok ~= 'stream' then return {} end
local function named(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
local g
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local fields = named(flat)
  if fields['name'] == group then g = fields end
end
if not g then return {} end
local s = named(redis.call('XINFO', 'STREAM', stream))
local counts = redis.call('HMGET', ledger, 'base_read', 'committed', 'filtered', 'dead', 'rescued', 'dead_bytes')
local settled = 0
for i = 2, 5 do settled = settled + tonumber(counts[i] or 0) end
local records, parked = redis.call('HLEN', KEYS[3]) / 2, 0
if records > 0 then
  for _, consumer in ipairs(redis.call('XPENDING', stream, group)[4] or {}) do
    if consumer[1] == ARGV[2] then parked = tonumber(consumer[2]) end
  end
end
return {s['length'], s['entries-added'], tonumber(redis.call('HGET', KEYS[4], stream) or 0),
  s['first-entry'] and s['first-entry'][1] or '', s['last-generated-id'], g['last-delivered-id'], g['pending'],
  g['entries-read'] or -1, g['lag'] or -1, math.floor(records), parked, tonumber(counts[1] or -1), settled,
  tonumber(counts[6] or 0)}
