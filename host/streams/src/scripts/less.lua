-- Whether one entry id comes before another, by their decimal digits: exact, whatever their size.
local function less(x, y)
  local xm, xs = string.match(x, '(%d+)-(%d+)')
  local ym, ys = string.match(y, '(%d+)-(%d+)')
  if xm == ym then xm, ym = xs, ys end
  if #xm ~= #ym then return #xm < #ym end
  return xm < ym
end
