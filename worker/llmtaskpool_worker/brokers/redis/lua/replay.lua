-- ARGV: ids: dead letters wait again, with all their attempts.
-- Answers 1, or 0 for what is no dead letter.
local t, out = now(), {}
for i = 1, #ARGV do
  local id = ARGV[i]
  local b = books(id)
  local tk = p .. ':t:' .. id
  call('ZREM', p .. ':z', id)
  if b.s == 'D' and call('EXISTS', p .. ':b:' .. id) == 1 then
    b.x = b.x and t + (b.x - b.u)
    call('HSET', tk, 's', 'q', 'a', 0, 'f', '', 'l', 'replayed', 'u', t, '+', '1')
    b.u = t
    if b.x then call('HSET', tk, 'x', b.x) end
    call('HDEL', tk, 'e', '1')
    call('DEL', p .. ':r:' .. id)
    call('PERSIST', tk)
    call('PERSIST', p .. ':b:' .. id)
    if b.i then call('PERSIST', p .. ':i:' .. b.i) end
    hold(b, 1)
    enter_line(id, b, true)
    tell(id, { 'again', id, 'replayed' })
    out[#out + 1] = 1
  else
    out[#out + 1] = 0
  end
end
settle()
return out
