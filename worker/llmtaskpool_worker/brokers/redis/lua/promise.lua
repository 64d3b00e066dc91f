-- ARGV: id, pod, ms: somebody in this pod is about to make way for a task. Answers 1, or 0 when it
-- waits no longer or another pod has promised the same within so many milliseconds.
local tk, pod, lately = p .. ':t:' .. ARGV[1], ARGV[2], tonumber(ARGV[3])
local t, m = now(), try('HMGET', tk, 's', 'M')
if m.err or m[1] ~= 'q' then return 0 end
if m[2] then
  local other, at = string.match(m[2], '^(.*) (%d+)$')
  if other and other ~= pod and math.abs(t - tonumber(at)) < lately then return 0 end
end
call('HSET', tk, 'M', pod .. ' ' .. string.format('%d', t))
return 1
