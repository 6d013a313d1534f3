#!lua
-- Trims a stream down towards its retention, but only below what every group has read and acknowledged. In whole nodes of the
-- stream (some 100 entries), which costs Redis next to nothing, and no more than `most` entries in one call.
--
-- KEYS: 1 stream, 2 hash of what was trimmed by stream
-- ARGV: entries to keep, oldest id to keep by age ('' for no limit), most, then groups that do not count
-- Returns {removed, blocking group or '', entries above the retention that remain}
-- include less.lua
local key, keep, oldest, most = KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local ignored = {}
for i = 4, #ARGV do ignored[ARGV[i]] = true end
if redis.call('TYPE', key).ok ~= 'stream' then return {0, '', 0} end
-- The first entry that some group has not finished. What stands before it, all have.
local safe, blocker = nil, ''
for _, g in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local f = {}
  for i = 1, #g, 2 do f[g[i]] = g[i + 1] end
  if not ignored[f['name']] then
    local edge = f['last-delivered-id']
    if f['pending'] > 0 then
      -- A group that was set back has yet to read what stands before its oldest pending entry.
      local oldest = redis.call('XPENDING', key, f['name'])[2]
      if less(oldest, edge) then edge = oldest end
    end
    if not safe or less(edge, safe) then safe = edge; blocker = f['name'] end
  end
end
local removed = 0
local excess = redis.call('XLEN', key) - keep
if excess > 0 then
  local limit = math.min(excess, most)
  if safe then
    removed = redis.call('XTRIM', key, 'MINID', '~', safe, 'LIMIT', limit)
  else
    removed = redis.call('XTRIM', key, 'MAXLEN', '~', keep, 'LIMIT', limit)
  end
end
if oldest ~= '' then
  local target = oldest
  if safe and less(safe, target) then target = safe end
  removed = removed + redis.call('XTRIM', key, 'MINID', '~', target, 'LIMIT', most)
end
if removed > 0 then redis.call('HINCRBY', KEYS[2], key, removed) end
excess = math.max(redis.call('XLEN', key) - keep, 0)
-- More than a node or two above the retention and nothing to remove: somebody is not finished.
if removed > 0 or excess < 256 then blocker = '' end
return {removed, blocker, excess}
