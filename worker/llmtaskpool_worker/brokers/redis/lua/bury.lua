-- ARGV: dead_ttl_ms, then id, fence, why, error of each: what a claimer can't read becomes a dead
-- letter with the reason, and counts as put aside.
local t, dead_ttl, done = now(), ARGV[1], {}
for i = 2, #ARGV, 4 do
  local id = ARGV[i]
  local b = books(id)
  if b.s == 'r' and b.f == ARGV[i + 1] then
    call('ZREM', p .. ':l', id)
    call('SET', p .. ':r:' .. id, ARGV[i + 3], 'PX', dead_ttl)
    done[#done + 1] = { id, b, 'D', 'quarantined' }
    put_aside(id, ARGV[i + 2])
  end
end
ended(done, t, dead_ttl, dead_ttl, dead_ttl)
settle()
return #done
