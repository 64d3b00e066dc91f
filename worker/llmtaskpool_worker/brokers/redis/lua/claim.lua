-- ARGV: msgpack {worker, fence, lease_ms, most, ageing_ms, share, newest, credit,
--   {{group, free}, ...}, {line = T}, above, ttl_ms, only}. T <= 0: nobody of that line now. ageing_ms 0:
-- the order alone. above: only what has P = W / T above it. only: what is bound to this pod. `fence` and the place in the answer
-- make each claim's own: a counter kept here would go back with a lost second of the
-- file, and two claims would hold the same number.
-- Answers {'loads', lines whose T is not known} and takes nothing, or
-- {'ok', server's time, then id, fence, attempt, runs alone, accepted at, patient until, weight,
-- work, line, group, began at, what is shown, labels, goes soon, input of each}.
local worker, fence, lease, most, ageing, share, newest, credit_name, groups, T, above, ttl, only =
  unpack(cmsgpack.unpack(ARGV[1]), 1, 13)
local t = now()
local heads, free, oldest, unknown = {}, {}, {}, {}

local function first(key)
  local h = try('ZRANGE', key, 0, 0, 'WITHSCORES')
  if h.err then
    put_key_aside(key)
    return false
  end
  return h[1], tonumber(h[2])
end

local function look(g, k, at)
  local id, score = first(p .. ':q:' .. g .. ':' .. k)
  if id then heads[at] = { g = g, k = k, id = id, rank = -score / T[k] }
  else
    heads[at] = { g = g, k = k, id = false }
    call('SREM', p .. ':c:' .. g, k)
  end
end

local function look_at_oldest(g)
  local id, since = first(p .. ':a:' .. g)
  oldest[g] = id and { id = id, since = since }
end

for _, pair in ipairs(groups) do
  local g = pair[1]
  free[g] = pair[2]
  if ageing > 0 then look_at_oldest(g) end
  if pair[2] > 0 and only == '' then
    local lines = try('SMEMBERS', p .. ':c:' .. g)
    if lines.err then
      put_key_aside(p .. ':c:' .. g)
      lines = {}
    end
    for _, k in ipairs(lines) do
      if not T[k] then unknown[#unknown + 1] = k
      elseif T[k] > 0 then look(g, k, #heads + 1) end
    end
  end
end
if only ~= '' then
  for _, id in ipairs(call('SMEMBERS', p .. ':o:' .. only)) do
    local b = books(id)
    if b.s == 'q' and free[b.g] then
      if not T[b.k] then unknown[#unknown + 1] = b.k
      else heads[#heads + 1] = { g = b.g, k = b.k, id = id, rank = b.w / T[b.k], own = true } end
    end
  end
end
if #unknown > 0 then
  settle()
  return { 'loads', unpack(unknown) }
end

-- The oldest of those who have waited their bound: of groups with a free slot, or of any.
local function aged(any)
  local found
  for g, o in pairs(oldest) do
    if o and (any or free[g] > 0) and o.since <= t - ageing
        and (not found or o.since < found.since
          or (o.since == found.since and o.id < found.id)) then
      found = { id = o.id, since = o.since, g = g }
    end
  end
  return found
end

local function youngest()
  local found
  for g, n in pairs(free) do
    local y = n > 0 and call('ZREVRANGE', p .. ':a:' .. g, 0, 0, 'WITHSCORES') or {}
    if y[1] and (not found or tonumber(y[2]) > found.since) then
      found = { id = y[1], since = tonumber(y[2]), g = g }
    end
  end
  return found
end

local credit = tonumber(call('HGET', p .. ':s', credit_name) or 0)
local credit_was = credit
local out, taken, alone = { 'ok', t }, 0, false
local lost = {}
while taken < most and not alone do
  local best
  for i = 1, #heads do
    local h = heads[i]
    if h.id and free[h.g] > 0 and h.rank > above and (not best or h.rank > heads[best].rank
        or (h.rank == heads[best].rank and h.id < heads[best].id)) then best = i end
  end
  if not best then break end
  local g, k, id = heads[best].g, heads[best].k, heads[best].id
  local old, credit_before = ageing > 0 and aged(false), credit
  local other
  if old then
    if newest == 1 then other = youngest() elseif share > 0 and credit >= 0 then other = old end
    if other and other.id ~= id then
      local line = books(other.id).k
      if line and T[line] and T[line] <= 0 then other = nil -- its line is passed over now
      else g, id, k = other.g, other.id, line end
    else other = nil end
  end
  local b = books(id)
  if old and k and T[k] then
    credit = credit + share * T[k]
    if other and other.id == old.id then credit = credit - T[k] end
  elseif not old and ageing > 0 and not aged(true) then credit = 0 end
  if b.err or b.s ~= 'q' or not READS[b.v] then
    local why = b.err and 'not a hash' or not b.s and 'no books' or b.s ~= 'q' and 'not waiting'
      or 'version ' .. tostring(b.v)
    if k then call('ZREM', p .. ':q:' .. g .. ':' .. k, id) end
    call('ZREM', p .. ':a:' .. g, id)
    for i = 1, #heads do
      if heads[i].id == id then call('ZREM', p .. ':q:' .. heads[i].g .. ':' .. heads[i].k, id) end
    end
    put_aside(id, why)
  elseif b.alone and taken > 0 then
    credit = credit_before
    break -- it is taken by itself
  else
    local input = call('GET', p .. ':b:' .. id)
    if b.a == 0 and tonumber(b.x or t) < t then -- the next sweep ends it, and tells
      call('ZREM', p .. ':q:' .. b.g .. ':' .. b.k, id)
      call('ZREM', p .. ':a:' .. b.g, id)
    elseif not input then
      leave_line(id, b)
      hold(b, -1)
      lost[#lost + 1] = { id, b, 'F', 'input_lost' }
    else
      leave_line(id, b)
      hold(b, -1)
      local tk, own = p .. ':t:' .. id, fence .. '.' .. taken
      call('HSET', tk, 's', 'r', 'a', b.a + 1, 'f', own, 'o', worker)
      local began = t
      if b.a > 0 then began = tonumber(call('HGET', tk, 'h') or t) end
      if began == t then call('HSET', tk, 'h', t) end
      call('ZADD', p .. ':l', t + lease, id)
      count('running:' .. g, 1)
      local n = #out
      out[n + 1], out[n + 2], out[n + 3], out[n + 4] = id, own, b.a + 1, b.alone and 1 or 0
      out[n + 5], out[n + 6], out[n + 7], out[n + 8] = b.u, b.x or '0', b.w, b.y
      out[n + 9], out[n + 10], out[n + 11] = b.k, g, began
      out[n + 12], out[n + 13], out[n + 14], out[n + 15] = b.shown, b.labels or '', b.soon or '', input
      tell(id, { 'running', id, worker })
      free[g] = free[g] - 1
      taken = taken + 1
      alone = b.alone
    end
  end
  for i = 1, #heads do
    if heads[i].own then
      if heads[i].id == id then heads[i].id = false end
    elseif heads[i].g == g and heads[i].k == k or heads[i].id == id then
      look(heads[i].g, heads[i].k, i)
    end
  end
  if oldest[g] and oldest[g].id == id then look_at_oldest(g) end
end
if #lost > 0 then ended(lost, t, ttl, ttl, ttl) end
if credit ~= credit_was then call('HSET', p .. ':s', credit_name, tostring(credit)) end
if taken > 0 then
  local woken = {}
  for i = 1, #heads do -- more waits: the next who is idle is to look as well
    if heads[i].id and not woken[heads[i].g] then
      woken[heads[i].g] = true
      wake(heads[i].g)
    end
  end
end
settle()
return out
