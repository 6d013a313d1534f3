#!lua
-- Trims a stream down towards its retention, but only below what every group has read and acknowledged. Bounded: one call
-- looks at no more than `most` entries.
--
-- KEYS: 1 stream
-- ARGV: entries to keep, oldest id to keep by age ('' for no limit), most, then groups that do not count
-- Returns {removed, blocking group or '', entries above the retention that remain}
local key, keep, oldest, most = KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local ignored = {}
for i = 4, #ARGV do ignored[ARGV[i]] = true end
local function parts(id) local ms, seq = string.match(id, '(%d+)-(%d+)'); return tonumber(ms), tonumber(seq) end
local function less(x, y)
  local xm, xs = parts(x); local ym, ys = parts(y)
  return xm < ym or (xm == ym and xs < ys)
end
if redis.call('TYPE', key).ok ~= 'stream' then return {0, '', 0} end
-- The first entry that some group has not finished. What stands before it, all have.
local safe, blocker = nil, ''
for _, g in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local f = {}
  for i = 1, #g, 2 do f[g[i]] = g[i + 1] end
  if not ignored[f['name']] then
    local edge = f['last-delivered-id']
    if f['pending'] > 0 then edge = redis.call('XPENDING', key, f['name'])[2] end
    if not safe or less(edge, safe) then safe = edge; blocker = f['name'] end
  end
end
local excess = redis.call('XLEN', key) - keep
local removed, blocked = 0, ''
if excess > 0 then
  local head = redis.call('XRANGE', key, '-', '+', 'COUNT', math.min(excess, most) + 1)
  local target = head[#head][1]
  if safe and less(safe, target) then target = safe; blocked = blocker end
  removed = redis.call('XTRIM', key, 'MINID', '=', target)
end
if oldest ~= '' then
  local target = oldest
  if safe and less(safe, target) then target = safe; blocked = blocker end
  removed = removed + redis.call('XTRIM', key, 'MINID', '=', target)
end
local left = redis.call('XLEN', key) - keep
if left < 0 then left = 0 end
return {removed, blocked, left}
