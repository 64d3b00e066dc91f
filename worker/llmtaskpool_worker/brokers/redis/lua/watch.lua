-- ARGV: pod, ttl_ms, id: this pod is told what becomes of a task.
-- Answers {state, owner, why}: state '' when it is unknown.
local pod, ttl, id = ARGV[1], ARGV[2], ARGV[3]
local b = books(id)
if not b.s then return { '', '', '' } end
if not ENDED[b.s] then
  call('SADD', p .. ':v:' .. id, pod)
  if not b.watched then call('HSET', p .. ':t:' .. id, 'W', '1', 'R', '1', '+', '1') end
  call('PEXPIRE', p .. ':v:' .. id, ttl)
  if b.s == 'r' then call('PUBLISH', p .. ':w:' .. owner_of(b), cmsgpack.pack({ 'watch', id, pod })) end
end
return { b.s, owner_of(b), call('HGET', p .. ':t:' .. id, 'l') or '' }
