-- ARGV: msgpack {worker, fence, lease_ms, most, ageing_ms, share, newest, lane,
--   {{group, free}, ...}, {line = T}, above, only, ttl_ms, heads,
--   {tenant = most that may run}, {line = F}}.
-- ageing_ms 0: the order alone. above: only what has P = W / T above it. only: what is bound to
-- this pod. heads 1: tell who is first in line now. `fence` and the place in the answer make each
-- claim's own: a counter kept here would go back with a lost second of the file, and two claims
-- would hold the same number.
-- Answers {'loads', lines whose T is not known} and takes nothing, or {'ok', server's time, {of each
-- group that has a free slot and has more: group, line, id and score of its best}, msgpack {{id,
-- fence, attempt, runs alone, accepted at, patient until, weight, work, line, group, began at, what
-- is shown}, ...}, then the input of each}. As values of an answer each would cost more than here.
local worker, fence, lease, most, ageing, share, newest, lane, groups, T, above, only, ttl,
  heads, bounds, F = unpack(cmsgpack.unpack(ARGV[1]), 1, 16)
local t = now()
local t_text, lease_text = as_text(t), as_text(t + lease)
-- What is taken leaves its sets at the end, all of it at once. Where somebody has aged, or only what
-- is bound is wanted, tasks come out of the middle of lines: then each leaves at once.
local together = only == ''

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

-- Lines: of each its group, name and key, the weight that its head has at most, and P by it; P is
-- below 0 where nobody is to be taken. A head is looked at when it may be the best of all: then hid
-- is its id, false where there is none, and weight and P are its own.
local hg, hk, hq, hw, hid, rank, n = {}, {}, {}, {}, {}, {}, 0
local taken = 0
local rows, at, left = {}, {}, {} -- what was read of a line, the head's place there, who has left
local function key_of(i)
  hq[i] = hq[i] or p .. ':q:' .. hg[i] .. ':' .. hk[i]
  return hq[i]
end
local function look(i)
  local row = rows[i]
  if not row or not row[at[i]] then
    local gone = left[i] and #left[i] or 0
    row = try('ZRANGE', key_of(i), gone, row and gone + most - taken or gone, 'WITHSCORES')
    if row.err then
      put_key_aside(key_of(i))
      row = {}
    end
    rows[i], at[i] = row, 1
  end
  local id = row[at[i]]
  if id then
    local w = -tonumber(row[at[i] + 1])
    hid[i] = id
    if w ~= hw[i] then
      hw[i], rank[i] = w, w / T[hk[i]] * (F[hk[i]] or 1)
      call('ZADD', p .. ':c:' .. hg[i], w, hk[i])
    end
  else
    hid[i], rank[i] = false, -1
    call('ZREM', p .. ':c:' .. hg[i], hk[i])
  end
end

local free, oldest, unknown = {}, {}, {}
local some_aged = false
local function look_at_oldest(g)
  local key = p .. ':a:' .. g
  local o = try('ZRANGE', key, 0, 0, 'WITHSCORES')
  if o.err then
    put_key_aside(key)
    o = {}
  end
  local since = tonumber(o[2])
  oldest[g] = since and { id = o[1], since = since, g = g }
  if since and since <= t - ageing then some_aged, together = true, false end
end
for _, pair in ipairs(groups) do
  local g = pair[1]
  free[g] = pair[2]
  if ageing > 0 then look_at_oldest(g) end
  if pair[2] > 0 and only == '' then
    local lines = try('ZRANGE', p .. ':c:' .. g, 0, -1, 'WITHSCORES')
    if lines.err then
      put_key_aside(p .. ':c:' .. g)
      lines = {}
    end
    for i = 1, #lines, 2 do
      local k = lines[i]
      if not T[k] then unknown[#unknown + 1] = k
      else
        n = n + 1
        hg[n], hk[n], hw[n] = g, k, tonumber(lines[i + 1])
        if bounded and not has_room(k) then hid[n], rank[n] = false, -1
        else rank[n] = hw[n] / T[k] * (F[k] or 1) end
      end
    end
  end
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

local aged, youngest
if some_aged then
  -- The oldest of those who have waited their bound, of groups with a free slot.
  aged = function()
    local found
    for g, o in pairs(oldest) do
      if o and free[g] > 0 and o.since <= t - ageing and (not found or o.since < found.since
          or (o.since == found.since and o.id < found.id)) then found = o end
    end
    return found
  end
  youngest = function()
    local found
    for g, slots in pairs(free) do
      local y = slots > 0 and call('ZREVRANGE', p .. ':a:' .. g, 0, 0, 'WITHSCORES') or {}
      if y[1] and (not found or tonumber(y[2]) > found.since) then
        found = { id = y[1], since = tonumber(y[2]), g = g }
      end
    end
    return found
  end
end

-- A task leaves line k of group g; best is the line whose turn it was.
local leave_a, leave_x, leased = {}, {}, { '+inf', MARK }
local function leave(best, g, k, id, until_ms)
  if together then
    local q, a = left[best], leave_a[g]
    if not q then
      q = {}
      left[best] = q
    end
    if not a then
      a = {}
      leave_a[g] = a
    end
    q[#q + 1], a[#a + 1] = id, id
  else
    call('ZREM', p .. ':q:' .. g .. ':' .. k, id)
    call('ZREM', p .. ':a:' .. g, id)
  end
  if until_ms then leave_x[#leave_x + 1] = id end
end

-- The next of its line is to be looked at.
local function move_on(best, g, k, id)
  if together then
    at[best] = at[best] + 2
    if rank[best] >= 0 then hid[best] = nil end
  else
    for i = 1, n do
      if only ~= '' then
        if hid[i] == id then hid[i], rank[i] = false, -1 end
      elseif hid[i] and (i == best or hid[i] == id or (hg[i] == g and hk[i] == k)) then
        hid[i], rows[i] = nil, nil
      end
    end
    if oldest[g] and oldest[g].id == id then look_at_oldest(g) end
  end
  if free[g] <= 0 then
    for i = 1, n do
      if hg[i] == g then rank[i] = -1 end
    end
  end
end

local credit_was = some_aged and tonumber(call('HGET', p .. ':s', 'credit:' .. lane) or 0) or 0
local credit = credit_was
local first_in_line, NONE = {}, {}
local out, given, lost = { 'ok', t, first_in_line, '' }, {}, {}
local alone, bytes, work = false, 0, {}
local best, second -- ranks only fall: the best that was is the best while it is above the second
while taken < most and not alone do
  repeat
    if not best or rank[best] <= second then
      local highest = above
      best, second = nil, above
      for i = 1, n do
        local r = rank[i]
        if r > highest then best, highest, second = i, r, highest
        elseif r > second then second = r end
        if r == highest and best ~= i and best and hid[best] and (not hid[i] or hid[i] < hid[best])
        then best = i end
      end
    end
    local known = not best or hid[best]
    if not known then look(best) end
  until known
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
  local m = try('HMGET', tk, 's', 'v', '+', 'w', 'u', 'y', 'z', 'm')
  local a, x, lone, watched, h =
    unpack(m[3] and call('HMGET', tk, 'a', 'x', '1', 'W', 'h') or NONE, 1, 5)
  local by_itself = lone == '1'
  if m.err or m[1] ~= 'q' or not READS[m[2]] or not (m[4] and m[5] and m[6] and m[7]) then
    local why = m.err and 'not a hash' or not m[1] and 'no books' or m[1] ~= 'q' and 'not waiting'
      or not READS[m[2]] and 'version ' .. tostring(m[2]) or 'incomplete books'
    for i = 1, n do
      if hid[i] == id and hq[i] then
        call('ZREM', hq[i], id)
        if i ~= best then hid[i], rows[i] = nil, nil end
      end
    end
    call('ZREM', p .. ':a:' .. g, id)
    put_aside(id, why)
  elseif by_itself and taken > 0 then
    credit = credit_before
    break -- it is taken by itself
  else
    local attempts = tonumber(a or 0)
    local wanted = attempts > 0 or not x or tonumber(x) >= t
    leave(best, g, k, id, wanted and x)
    if wanted then -- else the next sweep ends it
      local input = try('GET', p .. ':b:' .. id)
      bytes, work[g] = bytes + m[7], (work[g] or 0) + m[6]
      billed(k, -1, type(input) == 'string' and 1 or 0)
      if type(input) ~= 'string' then
        lost[#lost + 1] = { id, books(id), 'F', 'input_lost' }
        call('RPUSH', p .. ':T', id)
        count('held:' .. lane, -1)
      else
        local own, began = fence .. '.' .. taken, t_text
        if not a then
          call('HSET', tk, 's', 'r', 'f', own, 'h', t_text)
        else
          began = attempts > 0 and h or t_text
          call('HSET', tk, 's', 'r', 'a', attempts + 1, 'f', own, 'h', began)
        end
        leased[#leased + 1], leased[#leased + 2] = lease_text, id
        if watched then tell(id, { 'running', id, worker }) end
        free[g] = free[g] - 1
        taken = taken + 1
        given[taken] = { id, own, attempts + 1, by_itself and '1' or '0', m[5], x or '0', m[4], m[6],
          k, g, began, m[8] or '' }
        out[4 + taken] = input
        local tenant = bounded and tenant_of(k)
        if tenant and room[tenant] then
          room[tenant] = room[tenant] - 1
          if room[tenant] <= 0 then
            for i = 1, n do
              if tenant_of(hk[i]) == tenant then hid[i], rank[i] = false, -1 end
            end
          end
        end
        alone = by_itself
      end
    end
  end
  move_on(best, g, k, id)
end
-- From the head of their lines: nobody stands before them.
for i, ids in pairs(left) do call('ZREMRANGEBYRANK', hq[i], 0, #ids - 1) end
for g, ids in pairs(leave_a) do call('ZREM', p .. ':a:' .. g, unpack(ids)) end
if leave_x[1] then call('ZREM', p .. ':x', unpack(leave_x)) end
if leased[3] then call('ZADD', p .. ':l', unpack(leased)) end
local from = left
left = {}

if ageing > 0 and not some_aged then credit = 0 end
if credit ~= credit_was or (ageing > 0 and not some_aged and share > 0) then
  if credit == 0 then call('HDEL', p .. ':s', 'credit:' .. lane)
  else call('HSET', p .. ':s', 'credit:' .. lane, tostring(credit)) end
end
count('held:' .. lane, -taken)
count('bytes:' .. lane, -bytes)
for g, y in pairs(work) do count('work:' .. g, -y) end
if #lost > 0 then ended(lost, t, ttl, ttl, ttl) end

-- Of each group the line whose head has the highest P = W / T, whatever is free.
local function best_of_all()
  local best, highest, unseen = {}, {}, false
  for i = 1, n do
    local g, P = hg[i], hw[i] and hid[i] ~= false and hw[i] / T[hk[i]]
    if P and P > (highest[g] or 0) then best[g], highest[g] = i, P end
  end
  for _, i in pairs(best) do
    if not hid[i] then
      look(i)
      unseen = true
    end
  end
  return not unseen and best
end
if heads == 1 then
  local best
  repeat best = best_of_all() until best
  for g, i in pairs(best) do
    local o = #first_in_line
    first_in_line[o + 1], first_in_line[o + 2] = g, hk[i]
    first_in_line[o + 3], first_in_line[o + 4] = hid[i], tostring(-hw[i])
  end
end

-- Whether somebody waits in a line; one that was not looked at has somebody, as far as is known.
local function has_somebody(i)
  if hid[i] ~= nil then return hid[i] end
  if together and not from[i] then return true end
  if rows[i] and rows[i][at[i]] or call('EXISTS', key_of(i)) == 1 then return true end
  hid[i] = false
  call('ZREM', p .. ':c:' .. hg[i], hk[i])
  return false
end
if taken > 0 then
  local woken = {}
  for i = 1, n do -- more waits: the next who is idle is to look as well
    local g = hg[i]
    if (from[i] or not woken[g]) and has_somebody(i) and not woken[g] then
      woken[g] = true
      wake(g)
    end
  end
end
if taken > 0 then out[4] = cmsgpack.pack(given) end
settle()
return out
