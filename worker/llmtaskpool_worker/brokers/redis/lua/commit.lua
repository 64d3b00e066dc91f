-- ARGV: ttl_ms, soon_ms, msgpack {id, fence, state (S or F), why of each, one after the other}, then
-- the result of each.
-- Answers the server's time, then for each 1 (this ended it), 2 (said again after a lost answer: it
-- was this that ended it) or 0 (lost: the fence is not the one in force).
local t, ttl, soon = now(), ARGV[1], ARGV[2]
local t_text, by_ttl, by_soon = as_text(t), as_text(t + ttl), as_text(t + soon)
local out, done, here, leases = { t }, {}, {}, {}
local SHORT = 64 -- bytes; a longer value would make a hash table of its books
local plain, inputs = {}, {} -- those of whose end nobody else is to be told
local ends = cmsgpack.unpack(ARGV[3])
for i = 1, #ARGV - 3 do
  local id, fence, s, why = unpack(ends, 4 * i - 3, 4 * i)
  local tk, until_ms = p .. ':t:' .. id, by_ttl
  local m = try('HMGET', tk, 's', 'f', 'k', 'R')
  if m[1] == 'r' and m[2] == fence and not here[id] then
    local k, data = m[3] or '', ARGV[3 + i]
    local in_books = #data <= SHORT
    leases[#leases + 1] = id
    if m[4] then
      local more = call('HMGET', tk, 't', 'i', 'p', 'W', 'N')
      if more[1] then until_ms = by_soon end
      done[#done + 1] = { id, { s = 'r', k = k, soon = more[1], i = more[2], p = more[3],
        watched = more[4], needed = more[5] }, s, why }
      if in_books then call('HSET', tk, 'o', data) end
    else
      local values = { 's', s, 'e', t_text }
      if in_books then values[5], values[6] = 'o', data end
      if why ~= '' then values[#values + 1], values[#values + 2] = 'l', why end
      call('HSET', tk, unpack(values))
      call('PEXPIREAT', tk, by_ttl)
      billed(k, 0, -1)
      plain[#plain + 1], inputs[#inputs + 1] = id, p .. ':b:' .. id
    end
    -- The server would make this of PX, which takes longer.
    if not in_books then call('SET', p .. ':r:' .. id, data, 'PXAT', until_ms) end
    here[id] = s
    out[#out + 1] = 1
  elseif m[2] == fence and (here[id] or m[1]) == s then
    out[#out + 1] = 2
  else
    out[#out + 1] = 0
  end
end
if leases[1] then call('ZREM', p .. ':l', unpack(leases)) end
if plain[1] then
  call('DEL', unpack(inputs))
  call('LPUSH', p .. ':e', unpack(plain))
end
if done[1] then ended(done, t, ttl, soon, ttl) end
settle()
return out
