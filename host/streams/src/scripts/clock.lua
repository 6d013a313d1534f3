-- What is parked is due by the server's clock. When that was set back, what was parked before would oversleep by as much. The ledger
-- remembers what the clock showed, so that whoever parks or sweeps next notices, and moves all that is parked along with it.
-- Returns the parked entries that are gone from the stream: a claim would drop them from the pending list without a word. Who only
-- parks cannot save them, and then leaves all as it is to the next sweep.
local function mind_the_clock(input, ledger, group, retry, longest, sweeps)
  local time, there, gone = redis.call('TIME'), {}, {}
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local back = tonumber(redis.call('HGET', ledger, 'clock_ms') or '0') - now
  if back > 2000 then
    for _, p in ipairs(redis.call('XPENDING', input, group, '-', '+', 100000, retry)) do
      if #redis.call('XRANGE', input, p[1], p[1]) == 1 then
        there[#there + 1] = p
      elseif p[3] < longest then
        gone[#gone + 1] = p
      end
    end
    if #gone > 0 and not sweeps then return gone end
    for _, p in ipairs(there) do
      redis.call('XCLAIM', input, group, retry, 0, p[1], 'IDLE', math.min(p[3] + back, longest), 'JUSTID')
    end
  end
  redis.call('HSET', ledger, 'clock_ms', now)
  return gone
end
