-- ARGV: msgpack {lane, rank, {line = T / F}, ttl_ms, soon_ms}; the error. The lane is full: of what
-- waits in it and ends with a connection, the least urgent ends, where its P x F is below rank.
-- Answers {'loads', lines whose T is not known} and does nothing, or {'ok', its id or ''}.
local LOOKED_AT = 8
local lane, highest, T, ttl, soon = unpack(cmsgpack.unpack(ARGV[1]), 1, 5)
local t, unknown, least = now(), {}, false
for _, g in ipairs(call('SMEMBERS', p .. ':g')) do
  local here = string.match(g, '^(%d+):') and READS[string.match(g, '^(%d+):')]
  local lines = here and string.match(g, '^%d+:(%a+):') == lane
    and try('ZRANGE', p .. ':c:' .. g, 0, -1)
  for _, k in ipairs(lines and not lines.err and lines or {}) do
    if not T[k] then unknown[#unknown + 1] = k
    else
      local last = try('ZREVRANGE', p .. ':q:' .. g .. ':' .. k, 0, LOOKED_AT - 1, 'WITHSCORES')
      for i = 1, last.err and 0 or #last, 2 do
        local P = -tonumber(last[i + 1]) / T[k]
        if P >= highest then break end
        if try('HEXISTS', p .. ':t:' .. last[i], 'p') == 1 then
          least, highest = last[i], P
          break
        end
      end
    end
  end
end
if #unknown > 0 then return { 'loads', unpack(unknown) } end
local b = least and books(least)
if not b or b.s ~= 'q' then return { 'ok', '' } end
leave_line(least, b)
hold(b, -1)
call('SET', p .. ':r:' .. least, ARGV[2], 'PX', soon)
ended({ { least, b, 'F', 'shed' } }, t, ttl, soon, ttl)
call('RPUSH', p .. ':T', least)
settle()
return { 'ok', least }
