-- A task has ended: its books say so, its watchers hear it, and its dependants are counted on.
-- A task that fails by it ends in the same call, and so on.
local function told_dependants(id, s, t, todo)
  local kids = p .. ':k:' .. id
  for _, kid in ipairs(call('SMEMBERS', kids)) do
    local tk = p .. ':t:' .. kid
    if call('HGET', tk, 's') == 'b' then
      call('HINCRBY', tk, s == 'S' and 'ok' or 'bad', 1)
      local m = call('HMGET', tk, 'need', 'of', 'part', 'ok', 'bad')
      local need, of, part = tonumber(m[1]), tonumber(m[2]), m[3] == '1'
      local ok, bad = tonumber(m[4]), tonumber(m[5])
      if ok >= need or (part and ok + bad == of) then
        local b = books(kid)
        call('SREM', p .. ':B', kid)
        call('DEL', p .. ':u:' .. kid)
        call('HSET', tk, 's', 'q')
        b.x = t + call('HGET', tk, 'pat') -- the time that it was blocked is not counted
        call('HSET', tk, 'x', b.x, '+', '1')
        enter_line(kid, b, true)
        tell(kid, { 'again', kid, '' })
      elseif not part and bad > of - need then
        todo[#todo + 1] = { kid, books(kid), 'F', 'dependency_failed' }
        call('RPUSH', p .. ':T', kid)
      end
    end
  end
  call('DEL', kids)
end

-- `todo`: {id, books, state, why} of what has left its line or its run already. `ttl`: of what is
-- fetched later, `soon` of what was read at once, `dead_ttl` of dead letters; milliseconds.
local function ended(todo, t, ttl, soon, dead_ttl)
  local i, over, inputs = 1, {}, {}
  while todo[i] do
    local id, b, s, why = unpack(todo[i], 1, 4)
    i = i + 1
    if b.s == 'b' then
      hold(b, -1)
      call('SREM', p .. ':B', id)
      call('DEL', p .. ':u:' .. id)
    end
    if b.s == 'r' then billed(b.k, 0, -1) end
    local tk = p .. ':t:' .. id
    if why == '' then call('HSET', tk, 's', s, 'e', t)
    else call('HSET', tk, 's', s, 'e', t, 'l', why) end
    if s == 'D' then
      call('ZADD', p .. ':z', t, id)
      call('PEXPIRE', tk, dead_ttl)
      call('PEXPIRE', p .. ':b:' .. id, dead_ttl)
    else
      local keep = b.soon and soon or ttl
      if b.needed then -- its children read its result
        keep = KEPT_FOR_CHILDREN
        call('PEXPIRE', p .. ':r:' .. id, keep, 'GT')
      end
      call('PEXPIREAT', tk, t + keep)
      over[#over + 1], inputs[#inputs + 1] = id, p .. ':b:' .. id
      if b.i then call('PEXPIRE', p .. ':i:' .. b.i, keep) end
    end
    if b.p then call('SREM', p .. ':o:' .. b.p, id) end
    if b.watched then tell(id, { 'ended', id, s, why }) end
    if b.needed then told_dependants(id, s, t, todo) end
  end
  if #over > 0 then
    call('DEL', unpack(inputs))
    call('LPUSH', p .. ':e', unpack(over))
  end
end
