#!lua flags=allow-oom
-- Gives back what waited for its retry and is no longer pending: somebody deleted the reserved consumer, or the stream. The
-- copies in the park hash go the way of a redrive. Twice is a no-op: the second finds no copy.
--
-- KEYS: 1 input stream, 2 ledger, 3 park hash, 4 dead letters, 5 redrive stream of the group
-- ARGV: group, cursor into the park hash, count, now (ISO 8601), plugin
-- Returns {next cursor, number given back, number that left only a tombstone}
local input, ledger, park, dead, redrive = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group = ARGV[1]
local function less(x, y)
  local xm, xs = string.match(x, '(%d+)-(%d+)')
  local ym, ys = string.match(y, '(%d+)-(%d+)')
  if xm == ym then xm, ym = xs, ys end
  if #xm ~= #ym then return #xm < #ym end
  return xm < ym
end
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
    local copy = redis.call('HGET', park, id .. ':entry')
    local fields = copy and cmsgpack.unpack(copy)
    if fields and #fields < 7000 then
      -- As in take: a producer's own fields of these names would speak for the host on the redrive stream.
      if input ~= redrive then
        local kept = {'cofferdam_id', id, 'cofferdam_stream', input}
        for k = 1, #fields, 2 do
          local name = fields[k]
          if name ~= 'cofferdam_stream' and name ~= 'cofferdam_id' and name ~= 'cofferdam_redrives' and name ~= 'cofferdam_record' then
            kept[#kept + 1] = name
            kept[#kept + 1] = fields[k + 1]
          end
        end
        fields = kept
      end
      fields[#fields + 1] = 'cofferdam_record'
      fields[#fields + 1] = page[2][f + 1]
      redis.call('XADD', redrive, '*', unpack(fields))
      redis.pcall('XGROUP', 'CREATE', redrive, group, '0')
      redis.call('HINCRBY', ledger, 'rescued', 1)
      back = back + 1
    else
      local note = cjson.encode({original_stream = input, failed_at = ARGV[4], reason = 'payload-trimmed', retry_count = 0})
      redis.call('XADD', dead, '*', 'payload', note, 'original_stream', input, 'original_id', id, 'group', group,
        'plugin', ARGV[5], 'digest', '', 'code', 'payload-trimmed', 'attempts', '[]', 'trap', '', 'log_tail', '', 'redrives', '0')
      redis.call('HINCRBY', ledger, 'dead', 1)
      stones = stones + 1
    end
    redis.call('HDEL', park, id, id .. ':entry')
  end
end
return {page[1], back, stones}
