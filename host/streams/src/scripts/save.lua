-- What becomes of an entry that somebody took from its stream while it was pending: its parked copy goes the way of a redrive, or
-- a tombstone among the dead letters says that it is gone. Returns whether it was saved. Whoever calls it then forgets the copy,
-- and acknowledges the entry when it is still pending.
local function save(keys, group, id, record, now, plugin)
  need({
    {'XADD', keys.dead, '*', 'x', 'x'}, {'XADD', keys.redrive, '*', 'x', 'x'}, {'HINCRBY', keys.ledger, 'x', 1},
    {'XACK', keys.input, group, '0-1'}, {'HDEL', keys.park, 'x'},
  })
  local copy = redis.call('HGET', keys.park, id .. ':entry')
  local fields = copy and cmsgpack.unpack(copy)
  -- More fields than one command can carry are not saved: a tombstone is all that is left of them.
  if not fields or #fields >= 7000 then
    local note = cjson.encode({original_stream = keys.input, failed_at = now, reason = 'payload-trimmed', retry_count = 0})
    redis.call('XADD', keys.dead, '*', 'payload', note, 'original_stream', keys.input, 'original_id', id, 'group', group,
      'plugin', plugin, 'digest', '', 'code', 'payload-trimmed', 'attempts', '[]', 'trap', '', 'log_tail', '', 'redrives', '0')
    redis.call('HINCRBY', keys.ledger, 'dead', 1)
    return false
  end
  if keys.input ~= keys.redrive then
    -- A producer's own fields of these names would speak for the host on the redrive stream.
    local kept = {'cofferdam_id', id, 'cofferdam_stream', keys.input}
    for f = 1, #fields, 2 do
      local name = fields[f]
      if name ~= 'cofferdam_stream' and name ~= 'cofferdam_id' and name ~= 'cofferdam_redrives' and name ~= 'cofferdam_record' then
        kept[#kept + 1] = name
        kept[#kept + 1] = fields[f + 1]
      end
    end
    fields = kept
  end
  fields[#fields + 1] = 'cofferdam_record'
  fields[#fields + 1] = record
  redis.call('XADD', keys.redrive, '*', unpack(fields))
  -- A group that has never read its redrive stream must find this entry when it comes.
  redis.pcall('XGROUP', 'CREATE', keys.redrive, group, '0')
  redis.call('HINCRBY', keys.ledger, 'rescued', 1)
  return true
end
