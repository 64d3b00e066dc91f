-- ARGV: state, why, error, ttl_ms, soon_ms, waiting only, then ids: end tasks that nobody commits.
-- Answers the state of each from now on, with a + before it when it is by this, '' when it is
-- unknown. A cancel that is answered with C or +C is
-- confirmed: the task is not started after this.
local s, why, said, ttl, soon, waiting_only = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5],
  ARGV[6] == '1'
local t, out, done = now(), {}, {}
for i = 7, #ARGV do
  local id = ARGV[i]
  local b = books(id)
  if not b.s then out[#out + 1] = ''
  elseif ENDED[b.s] or (b.s == 'r' and waiting_only) then
    out[#out + 1] = b.s
  else
    if b.s == 'q' then
      leave_line(id, b)
      hold(b, -1)
    elseif b.s == 'r' then
      call('ZREM', p .. ':l', id)
      call('PUBLISH', p .. ':w:' .. owner_of(b), cmsgpack.pack({ 'stop', id, b.f }))
    elseif b.s == 'd' then
      call('ZREM', p .. ':d', id)
      hold(b, -1)
    end
    call('HSET', p .. ':t:' .. id, 's', s, 'f', '')
    if said ~= '' then call('SET', p .. ':r:' .. id, said, 'PX', ttl) end
    done[#done + 1] = { id, b, s, why }
    out[#out + 1] = '+' .. s
  end
end
ended(done, t, ttl, soon, ttl)
settle()
return out
