#!lua flags=allow-oom
-- Forgets how many entries hosts have trimmed of a stream that was deleted and has begun anew: they are then more than all that is
-- gone of it, and what others take would go unseen.
--
-- KEYS: 1 stream, 2 hash of what was trimmed by stream
-- Returns 1 when that was forgotten, else 0.
if redis.call('TYPE', KEYS[1]).ok ~= 'stream' then return 0 end
local s = {}
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do s[info[i]] = info[i + 1] end
local trimmed = tonumber(redis.call('HGET', KEYS[2], KEYS[1]) or 0)
if trimmed <= s['entries-added'] - s['length'] then return 0 end
return redis.call('HDEL', KEYS[2], KEYS[1])
