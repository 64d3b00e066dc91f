-- ARGV: pod. What waits, by group. Answers {server's time, dead letters, put aside, running, blocked,
-- delayed, due next, waiting and bound to the pod, held in lane
-- compute, held in lane io, {what of each tenant waits and runs}, then of each group its name, how many wait, since
-- when, and their work in microseconds}.
local out = { now(), call('ZCARD', p .. ':z'),
  tonumber(call('HGET', p .. ':s', 'quarantined') or 0), math.max(0, call('ZCARD', p .. ':l') - 1),
  call('SCARD', p .. ':B'), call('ZCARD', p .. ':d'),
  tonumber(call('ZRANGE', p .. ':d', 0, 0, 'WITHSCORES')[2] or 0) }
local bound = call('SMEMBERS', p .. ':o:' .. ARGV[1])
for _, id in ipairs(bound) do
  local s = call('HGET', p .. ':t:' .. id, 's')
  if s == 'q' or s == 'b' or s == 'd' then out[8] = (out[8] or 0) + 1 end
end
out[8] = out[8] or 0
local held = call('HMGET', p .. ':s', 'held:compute', 'held:io')
out[9], out[10] = tonumber(held[1] or 0), tonumber(held[2] or 0)
out[11] = call('HGETALL', p .. ':n')
for _, g in ipairs(call('SMEMBERS', p .. ':g')) do
  local o = call('ZRANGE', p .. ':a:' .. g, 0, 0, 'WITHSCORES')
  local waiting = call('ZCARD', p .. ':a:' .. g)
  local work = tonumber(call('HGET', p .. ':s', 'work:' .. g) or 0)
  if waiting == 0 and work == 0 then
    call('SREM', p .. ':g', g)
    call('DEL', p .. ':c:' .. g) -- so that the next who comes names the group again
  end
  local n = #out
  out[n + 1], out[n + 2], out[n + 3] = g, waiting, tonumber(o[2] or 0)
  out[n + 4] = work
end
return out
