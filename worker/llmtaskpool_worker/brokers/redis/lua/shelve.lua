-- Change what lies on the shelf, all of it or nothing. ARGV: the name that decides ('': none), how
-- it has to look ('none', 'is'), what lies there then, milliseconds to keep (-1: for ever), the
-- bound in bytes (0: none), how many are put and deleted; names and data of the first, names of the
-- second, and names of what is to be kept for so long. Answers ok, stale or full.
local decides, how, expected = ARGV[1], ARGV[2], ARGV[3]
local keep, bound, at = tonumber(ARGV[4]), tonumber(ARGV[5]), now()
local puts, deletes = {}, {}
local kept = 8
for _ = 1, tonumber(ARGV[6]) do
  puts[#puts + 1] = { ARGV[kept], ARGV[kept + 1] }
  kept = kept + 2
end
for _ = 1, tonumber(ARGV[7]) do
  deletes[#deletes + 1] = ARGV[kept]
  kept = kept + 1
end

if decides ~= '' then
  local there = shelved(decides, at)
  for _, put in ipairs(puts) do
    if put[1] == decides and there == put[2] then return 'ok' end
  end
  if how == 'none' and there or how == 'is' and there ~= expected then return 'stale' end
end
local more = 0
for _, put in ipairs(puts) do more = more + #put[2] - (shelf_entry(put[1])) end
for _, name in ipairs(deletes) do more = more - (shelf_entry(name)) end
if bound > 0 and more > 0 and tonumber(call('HGET', p .. ':s', 'shelf') or 0) + more > bound then
  return 'full'
end
local ends = keep >= 0 and string.format('%d', at + keep) or '-1'
local function keep_it(name, size)
  call('HSET', p .. ':fz', name, size .. ' ' .. ends)
  if keep >= 0 then call('ZADD', p .. ':fx', ends, name) else call('ZREM', p .. ':fx', name) end
end
for _, name in ipairs(deletes) do unshelve(name) end
for _, put in ipairs(puts) do
  local name, data = put[1], put[2]
  count('shelf', #data - (shelf_entry(name)))
  call('SET', p .. ':f:' .. name, data)
  call('ZADD', p .. ':fn', 0, name)
  keep_it(name, #data)
end
for i = kept, #ARGV do
  if call('EXISTS', p .. ':f:' .. ARGV[i]) == 1 then keep_it(ARGV[i], (shelf_entry(ARGV[i]))) end
end
settle()
return 'ok'
