-- Look at the shelf. ARGV: 'get' and a name; 'names' with a prefix, the first text behind it, how
-- many, beyond which name ('': none) and 'newest' or 'oldest'; 'sweep' and how many; 'held'.
local what, at = ARGV[1], now()
if what == 'get' then return shelved(ARGV[2], at) end
if what == 'held' then return tonumber(call('HGET', p .. ':s', 'shelf') or 0) end
if what == 'sweep' then
  local gone = call('ZRANGEBYSCORE', p .. ':fx', '-inf', at, 'LIMIT', 0, ARGV[2])
  for _, name in ipairs(gone) do unshelve(name) end
  settle()
  return #gone
end
local low, high, most, newest = '[' .. ARGV[2], '(' .. ARGV[3], tonumber(ARGV[4]), ARGV[6] == 'newest'
if ARGV[5] ~= '' then
  if newest then high = '(' .. ARGV[5] else low = '(' .. ARGV[5] end
end
local out = {}
local found
if newest then
  found = call('ZRANGE', p .. ':fn', high, low, 'BYLEX', 'REV', 'LIMIT', 0, most)
else
  found = call('ZRANGE', p .. ':fn', low, high, 'BYLEX', 'LIMIT', 0, most)
end
for _, name in ipairs(found) do
  if shelved(name, at) then out[#out + 1] = name end
end
return out
