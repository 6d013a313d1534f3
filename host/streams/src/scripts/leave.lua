-- How a dead letter leaves, sent back or discarded: deleted, out of the count of the lane that left it there, and on record.
-- `may_leave` comes before the first write of a script, and ends it with an error when one of that cannot be done.
local function may_leave(dead, id, ledger, log)
  need({
    {'XDEL', dead, id}, {'EXISTS', ledger}, {'HINCRBY', ledger, 'dead_bytes', 1}, {'XADD', log, '*', 'x', 'x'},
  })
  local kind = redis.call('TYPE', log).ok
  if kind ~= 'stream' and kind ~= 'none' then error({err = 'WRONGTYPE ' .. log .. ' is not a stream'}) end
end

local function leave(dead, letter, ledger, log, act)
  redis.call('XADD', log, '*', unpack(act))
  redis.call('XDEL', dead, letter[1])
  -- A ledger that was removed with its plugin stays removed.
  if redis.call('EXISTS', ledger) == 0 then return end
  for f = 1, #letter[2], 2 do
    -- Anybody can write a letter: what is no number is not counted, and holds up nothing.
    if letter[2][f] == 'bytes' then redis.pcall('HINCRBY', ledger, 'dead_bytes', -(tonumber(letter[2][f + 1]) or 0)) end
  end
end
