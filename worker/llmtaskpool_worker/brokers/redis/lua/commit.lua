-- ARGV: ttl_ms, soon_ms, then id, fence, state (S or F), why, result of each.
-- Answers the server's time, then for each 1 (this ended it), 2 (said again after a lost answer: it
-- was this that ended it) or 0 (lost: the fence is not the one in force).
local t, ttl, soon = now(), ARGV[1], ARGV[2]
local out, done, here, leases = { t }, {}, {}, {}
for i = 3, #ARGV, 5 do
  local id, fence, s = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local m = try('HMGET', p .. ':t:' .. id, 's', 'f', 'k', 'R')
  local b = { s = m[1], f = m[2], k = m[3] or '' }
  if m[4] then
    m = call('HMGET', p .. ':t:' .. id, 't', 'i', 'p', 'W', 'N')
    b.soon, b.i, b.p, b.watched, b.needed = m[1], m[2], m[3], m[4], m[5]
  end
  if b.s == 'r' and b.f == fence and not here[id] then
    leases[#leases + 1] = id
    -- The server would make this of PX, which takes longer.
    call('SET', p .. ':r:' .. id, ARGV[i + 4], 'PXAT', t + (b.soon and soon or ttl))
    done[#done + 1] = { id, b, s, ARGV[i + 3] }
    here[id] = s
    out[#out + 1] = 1
  elseif b.f == fence and (here[id] or b.s) == s then
    out[#out + 1] = 2
  else
    out[#out + 1] = 0
  end
end
if leases[1] then call('ZREM', p .. ':l', unpack(leases)) end
ended(done, t, ttl, soon, ttl)
settle()
return out
