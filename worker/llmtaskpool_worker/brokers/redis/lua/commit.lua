-- ARGV: ttl_ms, soon_ms, then id, fence, state (S or F), why, result of each.
-- Answers the server's time, then for each 1 (this ended it), 2 (said again after a lost answer: it
-- was this that ended it) or 0 (lost: the fence is not the one in force).
local t, ttl, soon = now(), ARGV[1], ARGV[2]
local out, done, here = { t }, {}, {}
for i = 3, #ARGV, 5 do
  local id, fence, s = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local m = try('HMGET', p .. ':t:' .. id, 's', 'f', 't', 'i', 'p', 'W', 'N', 'k')
  local b = { s = m[1], f = m[2], soon = m[3], i = m[4], p = m[5], watched = m[6], needed = m[7],
    k = m[8] or '' }
  if b.s == 'r' and b.f == fence and not here[id] then
    call('ZREM', p .. ':l', id)
    call('SET', p .. ':r:' .. id, ARGV[i + 4], 'PX', b.soon and soon or ttl)
    done[#done + 1] = { id, b, s, ARGV[i + 3] }
    here[id] = true
    out[#out + 1] = 1
  elseif b.f == fence and (b.s == s or here[id]) then
    out[#out + 1] = 2
  else
    out[#out + 1] = 0
  end
end
ended(done, t, ttl, soon, ttl)
settle()
return out
