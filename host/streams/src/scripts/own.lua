#!lua flags=allow-oom
-- Makes a host the owner of a lane that keeps an order, or renews that it is. Who owns a lane stands in its ledger: `owner`,
-- `epoch` (raised whenever it changes hands), `beat` (raised by each renewal) and `finished` (see settle). There is no expiry, which a step of the
-- server's clock would upset: who stands by passes the state that it has seen unchanged for a whole lease by its own clock.
--
-- KEYS: 1 ledger
-- ARGV: consumer, its epoch ('' when it is not the owner), the state that has been silent for too long ('' for none), the last
--   epoch that it knows of: what it sent under that must not count, even where the ledger was lost or a failover took it back
-- Returns {1, epoch} when renewed, {2, epoch} when it has become the owner, {0, state} when somebody else is.
local ledger, me = KEYS[1], ARGV[1]
local owner = redis.call('HGET', ledger, 'owner') or ''
local epoch = redis.call('HGET', ledger, 'epoch') or '0'
if owner == me and epoch == ARGV[2] then
  redis.call('HINCRBY', ledger, 'beat', 1)
  return {1, epoch}
end
local state = owner .. '|' .. epoch .. '|' .. (redis.call('HGET', ledger, 'beat') or '0')
if owner ~= '' and owner ~= me and state ~= ARGV[3] then return {0, state} end
epoch = math.max(tonumber(epoch), tonumber(ARGV[4])) + 1
redis.call('HSET', ledger, 'owner', me, 'epoch', epoch, 'beat', 0, 'finished', 0)
return {2, epoch}
