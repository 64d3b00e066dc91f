-- ARGV: ttl_ms, dead_ttl_ms, then id, fence, why, counted, alone of each:
-- back in line, or a dead letter when its attempts are used up. Answers 1 or 0 (lost) for each.
local t, ttl, dead_ttl = now(), ARGV[1], ARGV[2]
local out, dead = {}, {}
for i = 3, #ARGV, 5 do
  local id = ARGV[i]
  local b = books(id)
  if b.s == 'r' and b.f == ARGV[i + 1] then
    local counted = ARGV[i + 3] == '1'
    call('ZREM', p .. ':l', id)
    if counted and b.a >= b.most then
      dead[#dead + 1] = { id, b, 'D', ARGV[i + 2] }
    else
      wait_again(id, b, ARGV[i + 2], counted, ARGV[i + 4] == '1')
      tell(id, { 'again', id, ARGV[i + 2] })
    end
    out[#out + 1] = 1
  else
    out[#out + 1] = 0
  end
end
ended(dead, t, ttl, ttl, dead_ttl)
settle()
return out
