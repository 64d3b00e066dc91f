-- ARGV: most, then states. Answers ids, the newest `most` of each state's.
local most, out = ARGV[1] - 1, {}
local function add(ids)
  for _, id in ipairs(ids) do out[#out + 1] = id end
end
for i = 2, #ARGV do
  local s = ARGV[i]
  if s == 'q' then
    for _, g in ipairs(call('SMEMBERS', p .. ':g')) do
      add(call('ZREVRANGE', p .. ':a:' .. g, 0, most))
    end
  elseif s == 'r' then add(call('ZREVRANGE', p .. ':l', 0, most))
  elseif s == 'd' then add(call('ZREVRANGE', p .. ':d', 0, most))
  elseif s == 'b' then add(call('SRANDMEMBER', p .. ':B', most + 1))
  elseif s == 'D' then add(call('ZREVRANGE', p .. ':z', 0, most))
  elseif s == 'e' then add(call('LRANGE', p .. ':e', 0, most))
  end
end
return out
