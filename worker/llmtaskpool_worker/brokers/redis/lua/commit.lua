-- ARGV: ttl_ms, soon_ms, msgpack {id, fence, state (S or F), why of each, one after the other}, then
-- the result of each.
-- Answers the server's time, then for each 1 (this ended it), 2 (said again after a lost answer: it
-- was this that ended it) or 0 (lost: the fence is not the one in force).
local t, ttl, soon = now(), ARGV[1], ARGV[2]
local out, done, here, leases = { t }, {}, {}, {}
local plain, inputs = {}, {} -- those of whose end nobody else is to be told
local ends = cmsgpack.unpack(ARGV[3])
for i = 1, #ARGV - 3 do
  local id, fence, s, why = unpack(ends, 4 * i - 3, 4 * i)
  local tk, keep = p .. ':t:' .. id, ttl
  local m = try('HMGET', tk, 's', 'f', 'k', 'R')
  if m[1] == 'r' and m[2] == fence and not here[id] then
    local k = m[3] or ''
    leases[#leases + 1] = id
    if m[4] then
      local more = call('HMGET', tk, 't', 'i', 'p', 'W', 'N')
      if more[1] then keep = soon end
      done[#done + 1] = { id, { s = 'r', k = k, soon = more[1], i = more[2], p = more[3],
        watched = more[4], needed = more[5] }, s, why }
    else
      if why == '' then call('HSET', tk, 's', s, 'e', t)
      else call('HSET', tk, 's', s, 'e', t, 'l', why) end
      call('PEXPIREAT', tk, t + ttl)
      billed(k, 0, -1)
      plain[#plain + 1], inputs[#inputs + 1] = id, p .. ':b:' .. id
    end
    -- The server would make this of PX, which takes longer.
    call('SET', p .. ':r:' .. id, ARGV[3 + i], 'PXAT', t + keep)
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
