#!lua
-- Creates a group. One that was lost stands at its floor or its start again, unless the stream has begun anew since: its ids may then
-- be smaller (the server's clock was set back, or a producer makes them), and a group that stood beyond them would never read them.
--
-- KEYS: 1 stream
-- ARGV: group, id after which it reads, whether that was noted of a group that was lost (0/1)
-- Returns the id after which it reads; the error of XGROUP CREATE when there is such a group.
-- include less.lua
local stream, group, after = KEYS[1], ARGV[1], ARGV[2]
if ARGV[3] == '1' then
  local last = '0-0'
  if redis.call('TYPE', stream).ok == 'stream' then
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then last = info[i + 1] end
    end
  end
  if less(last, after) then after = '0-0' end
end
if not redis.acl_check_cmd('XGROUP', 'CREATE', stream, group, after, 'MKSTREAM') then
  return redis.error_reply('NOPERM this user may not XGROUP CREATE ' .. stream)
end
local created = redis.pcall('XGROUP', 'CREATE', stream, group, after, 'MKSTREAM')
if created.err then return created end
return after
