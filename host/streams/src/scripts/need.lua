-- Ends the script with an error, before its first write, unless the user may send every one of these commands. Rights can be
-- taken away while hosts are at work, and a command that is denied half-way would leave what was written before it, to be
-- written once more with every further try.
local function need(commands)
  for _, command in ipairs(commands) do
    if not redis.acl_check_cmd(unpack(command)) then
      error({err = 'NOPERM this user may not ' .. command[1] .. ' ' .. command[2]})
    end
  end
end
