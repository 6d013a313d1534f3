-- Whether a host may write on a lane: where no order is kept ('' for the epoch) always, else only as its owner under that epoch.
local function owns(ledger, me, epoch)
  return epoch == '' or (redis.call('HGET', ledger, 'owner') == me and redis.call('HGET', ledger, 'epoch') == epoch)
end
