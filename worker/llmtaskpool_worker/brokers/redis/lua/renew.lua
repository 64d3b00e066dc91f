-- ARGV: lease_ms, then id, fence of each. Answers the ids that are lost.
local t, lease, lost = now(), tonumber(ARGV[1]), {}
for i = 2, #ARGV, 2 do
  local m = try('HMGET', p .. ':t:' .. ARGV[i], 's', 'f')
  if m[1] == 'r' and m[2] == ARGV[i + 1] then call('ZADD', p .. ':l', 'XX', t + lease, ARGV[i])
  else lost[#lost + 1] = ARGV[i] end
end
return lost
