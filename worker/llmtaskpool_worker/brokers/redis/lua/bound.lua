-- ARGV: pod. Answers id and group of what waits and is bound to it.
local out = {}
for _, id in ipairs(call('SMEMBERS', p .. ':o:' .. ARGV[1])) do
  local b = books(id)
  if b.s == 'q' or b.s == 'b' or b.s == 'd' then out[#out + 1], out[#out + 2] = id, b.g end
end
return out
