-- ARGV: how many of each state to look at, behind how many, a tenant ('': all), then states. Answers
-- whether there are more behind these, then ids of the newest that are the tenant's. Of what waits
-- those of the tenant alone are looked at, by line.
local most, begin, tenant = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local last, out = begin + most - 1, { 0 }
local function add(ids)
  if #ids >= most then out[1] = 1 end
  for _, id in ipairs(ids) do
    local k = tenant ~= '' and try('HGET', p .. ':t:' .. id, 'k')
    if tenant == '' or (type(k) == 'string' and tenant_of(k) == tenant) then
      out[#out + 1] = id
    end
  end
end
local function waiting(g)
  if tenant == '' then return add(call('ZREVRANGE', p .. ':a:' .. g, begin, last)) end
  for _, k in ipairs(call('ZRANGE', p .. ':c:' .. g, 0, -1)) do
    if tenant_of(k) == tenant then
      local ids = try('ZREVRANGE', p .. ':q:' .. g .. ':' .. k, begin, last)
      if not ids.err then add(ids) end
    end
  end
end
for i = 4, #ARGV do
  local s = ARGV[i]
  if s == 'q' then
    for _, g in ipairs(call('SMEMBERS', p .. ':g')) do waiting(g) end
  elseif s == 'r' then add(call('ZREVRANGEBYSCORE', p .. ':l', '(+inf', '-inf', 'LIMIT', begin, most))
  elseif s == 'd' then add(call('ZREVRANGE', p .. ':d', begin, last))
  elseif s == 'b' then
    if tenant == '' then add(call('SRANDMEMBER', p .. ':B', most))
    elseif begin == 0 then add(call('SMEMBERS', p .. ':B')) end
  elseif s == 'D' then add(call('ZREVRANGE', p .. ':z', begin, last))
  elseif s == 'e' then add(call('LRANGE', p .. ':e', begin, last))
  end
end
return out
