-- ARGV: msgpack {worker, fence, lease_ms, most, ageing_ms, share, newest, lane,
--   {{group, free}, ...}, {line = T}, above, only, ttl_ms, heads,
--   {tenant = most that may run}, {line = F}}.
-- ageing_ms 0: the order alone. above: only what has P = W / T above it. only: what is bound to
-- this pod. heads 1: tell who is first in line now. `fence` and the place in the answer make each claim's own: a counter kept here would go
-- back with a lost second of the file, and two claims would hold the same number.
-- Answers {'loads', lines whose T is not known} and takes nothing, or {'ok', server's time, {of each
-- group that has a free slot and has more: group, line, id and score of its best}, then of each id, fence, attempt, runs alone, accepted at, patient until, weight, work, line, group,
-- began at, what is shown, input}.
local worker, fence, lease, most, ageing, share, newest, lane, groups, T, above, only, ttl,
  heads, bounds, F = unpack(cmsgpack.unpack(ARGV[1]), 1, 16)
local t = now()

-- Keys of a wrong type are looked for only when one was met: `redis.pcall` costs more.
local ask = call
local function first(key)
  local h = ask('ZRANGE', key, 0, 0, 'WITHSCORES')
  if h.err then
    put_key_aside(key)
    return false
  end
  return h[1], tonumber(h[2])
end

-- Of tenants whose tasks at work are bounded: how many more may be.
local bounded, room = next(bounds) ~= nil, {}
local function has_room(k)
  local tenant = tenant_of(k)
  local most = tenant and bounds[tenant]
  if not most then return true end
  if not room[tenant] then
    room[tenant] = most - tonumber(call('HGET', p .. ':n', 'r ' .. tenant) or 0)
  end
  return room[tenant] > 0
end

-- The first of each line: its group, line, key, id and P. P is below 0 where nobody is to be taken.
local hg, hk, hq, hid, hw, rank, n = {}, {}, {}, {}, {}, {}, 0
local function look(at)
  local id, score = first(hq[at])
  local k = hk[at]
  if id and bounded and not has_room(k) then
    hid[at], rank[at] = false, -1
  elseif id then
    hid[at], hw[at], rank[at] = id, -score, -score / T[k] * (F[k] or 1)
  else
    hid[at], rank[at] = false, -1
    call('SREM', p .. ':c:' .. hg[at], k)
  end
end

local free, oldest, unknown = {}, {}, {}
local some_aged = false
local function look_at_oldest(g)
  local id, since = first(p .. ':a:' .. g)
  oldest[g] = id and { id = id, since = since, g = g }
  return id and since <= t - ageing
end

local function look_at_groups()
  n, unknown, some_aged = 0, {}, false
  for _, pair in ipairs(groups) do
    local g = pair[1]
    free[g] = pair[2]
    if ageing > 0 and look_at_oldest(g) then some_aged = true end
    if pair[2] > 0 and only == '' then
      local lines = ask('SMEMBERS', p .. ':c:' .. g)
      if lines.err then
        put_key_aside(p .. ':c:' .. g)
        lines = {}
      end
      for _, k in ipairs(lines) do
        if T[k] then
          n = n + 1
          hg[n], hk[n], hq[n] = g, k, p .. ':q:' .. g .. ':' .. k
          look(n)
        else unknown[#unknown + 1] = k end
      end
    end
  end
end
if not pcall(look_at_groups) then
  ask = try
  look_at_groups()
end
if only ~= '' then
  for _, id in ipairs(call('SMEMBERS', p .. ':o:' .. only)) do
    local b = books(id)
    if b.s == 'q' and free[b.g] then
      if T[b.k] then
        n = n + 1
        hg[n], hk[n], hid[n], rank[n] = b.g, b.k, id, b.w / T[b.k]
      else unknown[#unknown + 1] = b.k end
    end
  end
end
if #unknown > 0 then
  settle()
  return { 'loads', unpack(unknown) }
end

-- The oldest of those who have waited their bound, of groups with a free slot.
local function aged()
  local found
  for g, o in pairs(oldest) do
    if o and free[g] > 0 and o.since <= t - ageing and (not found or o.since < found.since
        or (o.since == found.since and o.id < found.id)) then found = o end
  end
  return found
end

local function youngest()
  local found
  for g, slots in pairs(free) do
    local y = slots > 0 and call('ZREVRANGE', p .. ':a:' .. g, 0, 0, 'WITHSCORES') or {}
    if y[1] and (not found or tonumber(y[2]) > found.since) then
      found = { id = y[1], since = tonumber(y[2]), g = g }
    end
  end
  return found
end

-- What has left the head of its line, or was taken out of the middle.
local function move_on(best, g, k, id)
  if hid[best] == id then
    if hq[best] then look(best) else hid[best], rank[best] = false, -1 end
  else
    for i = 1, n do
      if hid[i] == id or (hg[i] == g and hk[i] == k) then look(i) end
    end
  end
  if some_aged and oldest[g] and oldest[g].id == id then look_at_oldest(g) end
  if free[g] <= 0 then
    for i = 1, n do
      if hg[i] == g then rank[i] = -1 end
    end
  end
end

local credit_was = some_aged and tonumber(call('HGET', p .. ':s', 'credit:' .. lane) or 0) or 0
local credit = credit_was
local first_in_line = {}
local out, lost = { 'ok', t, first_in_line }, {}
local taken, alone, bytes, work = 0, false, 0, {}
while taken < most and not alone do
  local best, highest = nil, above
  for i = 1, n do
    local r = rank[i]
    if r > highest or (r == highest and best and hid[i] < hid[best]) then best, highest = i, r end
  end
  if not best then break end
  local g, k, id = hg[best], hk[best], hid[best]
  local old, credit_before = some_aged and aged(), credit
  if old then
    local other = newest == 1 and youngest() or (share > 0 and credit >= 0) and old or nil
    local other_k = other and other.id ~= id and (books(other.id).k or k) or k
    if bounded and not has_room(other_k) then other, other_k = nil, k end
    local for_its_age = other and other.id == old.id and other.id ~= id
    if other and other.id ~= id then g, id, k = other.g, other.id, other_k end
    if T[k] then credit = credit + share * T[k] - (for_its_age and T[k] or 0) end
  end
  local tk = p .. ':t:' .. id
  local m = try('HMGET', tk, 's', 'v', 'a', 'x', 'w', 'u', 'y', 'z', '1', 'm', 'W')
  if m.err or m[1] ~= 'q' or not READS[m[2]] or not (m[5] and m[6] and m[7] and m[8]) then
    local why = m.err and 'not a hash' or not m[1] and 'no books' or m[1] ~= 'q' and 'not waiting'
      or not READS[m[2]] and 'version ' .. tostring(m[2]) or 'incomplete books'
    for i = 1, n do
      if hid[i] == id and hq[i] then call('ZREM', hq[i], id) end
    end
    call('ZREM', p .. ':a:' .. g, id)
    put_aside(id, why)
  elseif m[9] == '1' and taken > 0 then
    credit = credit_before
    break -- it is taken by itself
  else
    local attempts, until_ms = tonumber(m[3] or 0), m[4]
    call('ZREM', p .. ':q:' .. g .. ':' .. k, id)
    call('ZREM', p .. ':a:' .. g, id)
    if attempts > 0 or not until_ms or tonumber(until_ms) >= t then -- else the next sweep ends it
      if until_ms then call('ZREM', p .. ':x', id) end
      local input = call('GET', p .. ':b:' .. id)
      bytes, work[g] = bytes + m[8], (work[g] or 0) + m[7]
      billed(k, -1, input and 1 or 0)
      if not input then
        lost[#lost + 1] = { id, books(id), 'F', 'input_lost' }
        call('RPUSH', p .. ':T', id)
        count('held:' .. lane, -1)
      else
        local own, began = fence .. '.' .. taken, t
        if attempts == 0 then
          call('HSET', tk, 's', 'r', 'a', 1, 'f', own, 'o', worker, 'h', t)
        else
          began = call('HGET', tk, 'h') or t
          call('HSET', tk, 's', 'r', 'a', attempts + 1, 'f', own, 'o', worker, 'h', began)
        end
        call('ZADD', p .. ':l', t + lease, id)
        local at = #out
        out[at + 1], out[at + 2], out[at + 3], out[at + 4] = id, own, attempts + 1, m[9] or '0'
        out[at + 5], out[at + 6], out[at + 7], out[at + 8] = m[6], until_ms or '0', m[5], m[7]
        out[at + 9], out[at + 10], out[at + 11], out[at + 12] = k, g, began, m[10]
        out[at + 13] = input
        if m[11] then tell(id, { 'running', id, worker }) end
        free[g] = free[g] - 1
        taken = taken + 1
        local tenant = bounded and tenant_of(k)
        if tenant and room[tenant] then
          room[tenant] = room[tenant] - 1
          if room[tenant] <= 0 then
            for i = 1, n do
              if tenant_of(hk[i]) == tenant then hid[i], rank[i] = false, -1 end
            end
          end
        end
        alone = m[9] == '1'
      end
    end
  end
  move_on(best, g, k, id)
end
if ageing > 0 and not some_aged then credit = 0 end
if credit ~= credit_was or (ageing > 0 and not some_aged and share > 0
    and call('HGET', p .. ':s', 'credit:' .. lane)) then
  if credit == 0 then call('HDEL', p .. ':s', 'credit:' .. lane)
  else call('HSET', p .. ':s', 'credit:' .. lane, tostring(credit)) end
end
count('held:' .. lane, -taken)
count('bytes:' .. lane, -bytes)
for g, y in pairs(work) do count('work:' .. g, -y) end
if #lost > 0 then ended(lost, t, ttl, ttl, ttl) end
if heads == 1 then
  local best, highest = {}, {}
  for i = 1, n do
    local g, P = hg[i], hid[i] and hq[i] and hw[i] / T[hk[i]]
    if P and P > (highest[g] or 0) then best[g], highest[g] = i, P end
  end
  for g, i in pairs(best) do
    local at = #first_in_line
    first_in_line[at + 1], first_in_line[at + 2] = g, hk[i]
    first_in_line[at + 3], first_in_line[at + 4] = hid[i], tostring(-hw[i])
  end
end
if taken > 0 then
  local woken = {}
  for i = 1, n do -- more waits: the next who is idle is to look as well
    if hid[i] and not woken[hg[i]] then
      woken[hg[i]] = true
      wake(hg[i])
    end
  end
end
settle()
return out
