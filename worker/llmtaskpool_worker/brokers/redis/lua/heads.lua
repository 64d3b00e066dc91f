-- ARGV: groups. The first of each line that waits in them: of each its group, line, id and score.
local MOST = 256
local out = {}
for i = 1, #ARGV do
  local g = ARGV[i]
  local lines = try('ZRANGE', p .. ':c:' .. g, 0, -1)
  for at = 1, lines.err and 0 or math.min(#lines, MOST) do
    local h = try('ZRANGE', p .. ':q:' .. g .. ':' .. lines[at], 0, 0, 'WITHSCORES')
    if h[1] then
      local n = #out
      out[n + 1], out[n + 2], out[n + 3], out[n + 4] = g, lines[at], h[1], h[2]
    end
  end
end
return out
