-- ARGV: with results, then ids. Answers the server's time, then for each false or
-- {s, g, k, w, u, a, 2, h, e, l, m, L, t, D, result}.
local out = { now() }
for i = 2, #ARGV do
  local tk = p .. ':t:' .. ARGV[i]
  local m = try('HMGET', tk, 's', 'g', 'k', 'w', 'u', 'a', '2', 'h', 'e', 'l', 'm', 'L', 't', 'D',
    'o')
  if m.err or not m[1] then out[i] = false
  else
    m[6] = m[6] or m[8] and '1'
    m[15] = ARGV[1] == '1' and ENDED[m[1]]
      and (m[15] or call('GET', p .. ':r:' .. ARGV[i])) or ''
    out[i] = m
  end
end
return out
