-- ARGV: most, ttl_ms, soon_ms, dead_ttl_ms, lease_ms, silent_ms, expected, pod: what time has
-- decided. It is the pod's sign of life as well.
-- expected: the server's time as the caller reckons it, 0 if it can't.
-- Answers {server's time, ids that ended, ids that wait again}.
local most, ttl, soon, dead_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local lease, silent, expected = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local t = now()
local back, done = {}, {}
call('ZADD', p .. ':h', t, ARGV[8])
-- The server's clock was set: nobody's lease ends by it.
if expected > 0 and t - expected > lease then
  for _, id in ipairs(call('ZRANGEBYSCORE', p .. ':l', '-inf', t)) do
    call('ZADD', p .. ':l', 'XX', t + lease, id)
  end
end
for _, id in ipairs(call('ZRANGEBYSCORE', p .. ':l', t + 2 * lease, '(+inf', 'LIMIT', 0, most)) do
  call('ZADD', p .. ':l', 'XX', t + lease, id)
end
for _, id in ipairs(call('ZRANGEBYSCORE', p .. ':l', '-inf', t, 'LIMIT', 0, most)) do
  local b = books(id)
  if b.s ~= 'r' then call('ZREM', p .. ':l', id)
  else
    call('ZREM', p .. ':l', id)
    if b.a >= b.most then
      done[#done + 1] = { id, b, 'D', 'worker_lost' }
    else
      -- What ran when its worker died runs alone: whoever runs beside a poisonous task would die
      -- with it as often.
      wait_again(id, b, 'worker_lost', true, true)
      tell(id, { 'again', id, 'worker_lost' })
      back[#back + 1] = id
    end
  end
end
for _, id in ipairs(call('ZRANGEBYSCORE', p .. ':d', '-inf', t, 'LIMIT', 0, most)) do
  local b = books(id)
  call('ZREM', p .. ':d', id)
  if b.s == 'd' then
    call('HSET', p .. ':t:' .. id, 's', 'q')
    enter_line(id, b, true)
  end
end
for _, id in ipairs(call('ZRANGEBYSCORE', p .. ':x', '-inf', t, 'LIMIT', 0, most)) do
  local b = books(id)
  call('ZREM', p .. ':x', id)
  if b.s == 'q' then
    leave_line(id, b)
    hold(b, -1)
    done[#done + 1] = { id, b, 'X', 'queue_timeout' }
  end
end
-- Of the usual patience: the oldest of each group.
for _, g in ipairs(call('SMEMBERS', p .. ':g')) do
  local old = call('ZRANGEBYSCORE', p .. ':a:' .. g, '-inf', t - USUAL_PATIENCE, 'LIMIT', 0, most)
  for _, id in ipairs(old) do
    local b = books(id)
    if b.s == 'q' and b.a == 0 and not b.x then
      leave_line(id, b)
      hold(b, -1)
      done[#done + 1] = { id, b, 'X', 'queue_timeout' }
    end
  end
end
-- What waits for a connection of a pod that is silent is not wanted any more.
for _, pod in ipairs(call('ZRANGEBYSCORE', p .. ':h', '-inf', t - silent, 'LIMIT', 0, 16)) do
  local all = call('SRANDMEMBER', p .. ':o:' .. pod, most)
  for _, id in ipairs(all) do
    local b = books(id)
    if b.s == 'q' or b.s == 'd' or b.s == 'b' then
      if b.s == 'q' then leave_line(id, b) end
      if b.s == 'd' then call('ZREM', p .. ':d', id) end
      if b.s ~= 'b' then hold(b, -1) end
      done[#done + 1] = { id, b, 'C', 'worker_lost' }
    end
    call('SREM', p .. ':o:' .. pod, id)
  end
  if #all == 0 then call('ZREM', p .. ':h', pod) end
end
ended(done, t, ttl, soon, dead_ttl)
call('ZREMRANGEBYSCORE', p .. ':z', '-inf', t - dead_ttl)
call('LTRIM', p .. ':e', 0, LISTED - 1)
settle()
local gone, seen = {}, {}
local function told(id)
  if not seen[id] then gone[#gone + 1], seen[id] = id, true end
end
for _, one in ipairs(done) do told(one[1]) end
for _, id in ipairs(call('LPOP', p .. ':T', most) or {}) do told(id) end
return { t, gone, back }
