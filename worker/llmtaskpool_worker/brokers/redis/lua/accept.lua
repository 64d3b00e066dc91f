-- ARGV: msgpack {id, group, line, weight, work_us, bytes, lane, attempts, shown, patience_ms,
--   delay_ms, key, print, pod, most_tasks, most_bytes, depends_on, need, part, attended, labels,
--   ttl_ms, soon_ms, most of its tenant or -1, most of its group or -1}; the input.
-- Answers {what, id or counter, server's time, state}: ok, same (the id or its key is known),
-- conflict, full, unknown_dependency.
local a = cmsgpack.unpack(ARGV[1])
local id, deps, need, part = a[1], a[17], a[18], a[19] == 1
local b = { g = a[2], k = a[3], w = a[4], y = a[5], z = a[6] }
local key, print, pod = a[12], a[13], a[14]
local tk = p .. ':t:' .. id
local t = now()
if call('EXISTS', tk) == 1 then return { 'same', id, t } end
if key ~= '' then
  local known = call('GET', p .. ':i:' .. key)
  if known then
    local at = string.find(known, ' ', 1, true)
    local first = string.sub(known, 1, at - 1)
    if string.sub(known, at + 1) ~= print then return { 'conflict', first, t } end
    if call('EXISTS', p .. ':t:' .. first) == 1 then return { 'same', first, t } end
  end
end
local s, ok, bad = 'q', 0, 0
for _, dep in ipairs(deps) do
  local ds = call('HGET', p .. ':t:' .. dep, 's')
  if not ds then return { 'unknown_dependency', dep, t } end
  if ds == 'S' then ok = ok + 1 elseif ENDED[ds] then bad = bad + 1 end
end
if #deps > 0 and ok < need and not (part and ok + bad == #deps) then
  s = not part and bad > #deps - need and 'F' or 'b'
elseif a[11] > 0 then
  s = 'd'
end
local tenant = a[24] >= 0 and tenant_of(b.k)
if tenant and tonumber(call('HGET', p .. ':n', 'w ' .. tenant) or 0) >= a[24] then
  return { 'full', 'tenant', t }
end
if a[25] >= 0 and call('ZCARD', p .. ':a:' .. b.g) >= a[25] then return { 'full', 'model', t } end
local held = call('HMGET', p .. ':s', 'held:' .. a[7], 'bytes:' .. a[7])
if tonumber(held[1] or 0) + 1 > a[15] then return { 'full', 'tasks', t } end
if tonumber(held[2] or 0) + b.z > a[16] then return { 'full', 'bytes', t } end
-- The usual patience is not written down: the sweep knows it.
b.u, b.s = t, s
b.x = s ~= 'b' and (a[10] ~= USUAL_PATIENCE or s == 'd') and t + a[10] + (s == 'd' and a[11] or 0)
local new = { 'v', VERSION, 's', s, 'w', b.w, 'u', t, 'y', b.y, 'z', b.z, 'm', a[9], 'g', b.g,
  'k', b.k }
local function with(name, value) new[#new + 1], new[#new + 2] = name, value end
if b.x then
  with('x', b.x)
  with('+', '1')
end
if a[8] ~= ATTEMPTS then with('K', a[8]) end
if a[20] == 1 then
  with('t', '1')
  b.soon = '1'
end
if a[20] == 1 or key ~= '' or pod ~= '' then with('R', '1') end
if a[21] ~= '' then with('L', a[21]) end
if #deps > 0 then with('D', table.concat(deps, ' ')) end
if key ~= '' then
  call('SET', p .. ':i:' .. key, id .. ' ' .. print)
  with('i', key)
  b.i = key
end
if pod ~= '' then
  call('SADD', p .. ':o:' .. pod, id)
  with('p', pod)
  b.p = pod
end
call('SET', p .. ':b:' .. id, ARGV[2])
if s ~= 'F' then hold(b, 1) end
if s == 'b' or s == 'd' then call('SADD', p .. ':g', b.g) end
if s == 'b' then
  for _, pair in ipairs({ { 'need', need }, { 'of', #deps }, { 'part', part and '1' or '0' },
    { 'ok', ok }, { 'bad', bad }, { 'pat', a[10] } }) do with(pair[1], pair[2]) end
  call('SADD', p .. ':B', id)
  call('SADD', p .. ':u:' .. id, unpack(deps))
end
call('HSET', tk, unpack(new))
if s == 'q' then enter_line(id, b, true)
elseif s == 'd' then call('ZADD', p .. ':d', t + a[11], id)
elseif s == 'F' then ended({ { id, b, 'F', 'dependency_failed' } }, t, a[22], a[23], 0)
else
  local above, i = {}, 1
  for _, dep in ipairs(deps) do
    above[#above + 1] = dep
    if ENDED[call('HGET', p .. ':t:' .. dep, 's')] then
      call('PEXPIRE', p .. ':t:' .. dep, KEPT_FOR_CHILDREN, 'GT')
      call('PEXPIRE', p .. ':r:' .. dep, KEPT_FOR_CHILDREN, 'GT')
    else
      call('SADD', p .. ':k:' .. dep, id)
      call('HSET', p .. ':t:' .. dep, 'N', '1', 'R', '1')
    end
  end
  while above[i] do -- what somebody waits for has the strongest weight of those who do
    local dep = above[i]
    local m = books(dep)
    i = i + 1
    if m.s and not ENDED[m.s] and tonumber(m.w) < b.w then
      call('HSET', p .. ':t:' .. dep, 'w', b.w)
      if m.s == 'q' then
        call('ZADD', p .. ':q:' .. m.g .. ':' .. m.k, 'XX', -b.w, dep)
        call('ZADD', p .. ':c:' .. m.g, 'GT', b.w, m.k)
      end
      for _, one in ipairs(call('SMEMBERS', p .. ':u:' .. dep)) do above[#above + 1] = one end
    end
  end
end
settle()
return { 'ok', id, t, s }
