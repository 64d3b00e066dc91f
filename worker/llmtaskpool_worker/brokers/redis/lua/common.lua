-- Put before each script of the shared queue. KEYS[1] is the pool's prefix, ltp:{namespace/pool}:
-- all keys of a pool are in one hash slot. Times are milliseconds of the server's clock.
--
--   p:t:<id>     hash    a task's books; small values only, so that it stays a listpack
--   p:b:<id>     string  its input; deleted when it ends, kept while it is a dead letter
--   p:r:<id>     string  its result or error, with a time to live; a short one is in its books
--   p:q:<g>:<k>  zset    waiting tasks of group g and line k; score -W, member id
--   p:c:<g>      zset    lines of g that have somebody; score: what the weight of its head is at most
--   p:a:<g>      zset    waiting tasks of g by their acceptance
--   p:m:<g>      list    at most one marker: work waits for somebody who is idle
--   p:g          set     groups
--   p:x p:d p:l  zset    ends of patience; delayed tasks by when they are due; ends of leases, and MARK
--   p:k:<id>     set     tasks that depend on id; p:u:<id> those that a blocked id depends on
--   p:i:<hash>   string  idempotency key -> id and fingerprint
--   p:v:<id>     set     pods that watch
--   p:w:<pod>    channel inbox of a pod
--   p:h          zset    pods by their last sign of life
--   p:o:<pod>    set     tasks that end with a connection of this pod
--   p:z          zset    dead letters by when they died
--   p:e          list    what has ended, the newest first
--   p:T          list    what ended with others, to be told by a sweep
--   p:B          set     blocked tasks
--   p:y          hash    what is no task of ours, with a reason; p:y:<n> keys of a wrong type
--   p:f:<name>   string  a piece of a file, or a batch: what lies on the shelf
--   p:fn p:fz p:fx       their names (zset), sizes and ends (hash), and by when they go (zset)
--   p:s          hash    counters
--   p:n          hash    of each tenant: "w NAME" tasks that wait, "r NAME" tasks that run
--
-- Books: v version, s state (q waiting, b blocked, d delayed, r running; ended: S succeeded,
-- F failed, C cancelled, X expired, D dead letter), g group, k line, w weight, u accepted at,
-- x end of its patience where it is not the usual, y work in microseconds, z bytes,
-- a attempts where it is not as many as h says (none without h, one with it), 2 runs more under one
-- claim, f fence (the pod that holds the claim, /, and what is the claim's own), h began at, e ended
-- at, o its result where that is short, l why, 1 runs
-- alone, R that it has i, p, t, W or N, m, L and D what is shown of it, W that it is watched, N that others depend on it, i hash of
-- its key, p pod of its connection, K attempts at most where it is not the usual, t that it goes
-- soon after its end, M who makes way for it and since when; need, of, part, ok, bad, pat (patience from then on): of those that it
-- depends on. Whatever has a, x, 1 or W has + as well.
local p = KEYS[1]
local call, try = redis.call, redis.pcall
local VERSION, READS = 1, { ['1'] = true }
local ATTEMPTS, USUAL_PATIENCE = 3, 86400000
local KEPT_FOR_CHILDREN, LISTED = 86400000, 10000
-- The last of the leases, and none: a member of over 64 bytes makes a tree of the set. As a list of
-- up to 128 it would be read from end to end at each claim.
local MARK = 'not a lease: ' .. string.rep('.', 60)
local ENDED = { S = true, F = true, C = true, X = true, D = true }

local function now()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
-- A time as a command takes it: a number would be written with 17 digits each time it is one's argument.
local function as_text(t) return string.format('%.0f', t) end

-- Counters are added up and written once, at the end of a script.
local sums, bills = {}, {}
local function count(name, n) sums[name] = (sums[name] or 0) + n end
local function settle()
  local names, new = {}, {}
  for name, n in pairs(sums) do
    if n ~= 0 then names[#names + 1] = name end
  end
  if names[2] then -- one command that writes costs more than one that reads
    local old = call('HMGET', p .. ':s', unpack(names))
    for i, name in ipairs(names) do
      new[2 * i - 1], new[2 * i] = name, string.format('%.0f', (old[i] or 0) + sums[name])
    end
    call('HSET', p .. ':s', unpack(new))
  elseif names[1] then call('HINCRBY', p .. ':s', names[1], sums[names[1]]) end
  for name, n in pairs(bills) do
    if n ~= 0 and call('HINCRBY', p .. ':n', name, n) <= 0 then call('HDEL', p .. ':n', name) end
  end
end

-- A line has its tenant at its end; that of who showed no key has none.
local function tenant_of(k)
  if string.byte(k, -1) ~= 9 then return string.match(k, '\t(.+)$') end
end
local function billed(k, waits, runs)
  local tenant = tenant_of(k)
  if tenant then
    bills['w ' .. tenant] = (bills['w ' .. tenant] or 0) + waits
    bills['r ' .. tenant] = (bills['r ' .. tenant] or 0) + runs
  end
end

-- A task's books; a task that is none has err.
local function books(id)
  local m = try('HMGET', p .. ':t:' .. id, 's', 'g', 'k', 'w', 'u', 'x', 'y', 'z', 'a', 'f',
    'h', '1', 'v', 'i', 'p', 'K', 't', 'W', 'N')
  if m.err then return { err = m.err, s = false } end
  return { s = m[1], g = m[2], k = m[3], w = m[4], u = m[5], x = m[6], y = m[7], z = m[8],
    a = tonumber(m[9] or (m[11] and 1 or 0)), f = m[10], alone = m[12] == '1', v = m[13], i = m[14],
    p = m[15], most = tonumber(m[16] or ATTEMPTS), soon = m[17], watched = m[18], needed = m[19] }
end

-- The pod that holds a claim.
local function owner_of(b) return string.match(b.f or '', '^(.*)/') or '' end

local function wake(g)
  if call('LLEN', p .. ':m:' .. g) == 0 then call('LPUSH', p .. ':m:' .. g, '1') end
end

-- What is held of tasks that have not begun: b's share in it, n times.
local function hold(b, n)
  local lane = string.match(b.g, '^%d+:(%a+):')
  count('held:' .. lane, n)
  count('bytes:' .. lane, n * b.z)
  count('work:' .. b.g, n * b.y)
  billed(b.k, n, 0)
end

local function enter_line(id, b, patient)
  call('ZADD', p .. ':q:' .. b.g .. ':' .. b.k, -b.w, id)
  if call('ZADD', p .. ':c:' .. b.g, 'GT', b.w, b.k) == 1 then call('SADD', p .. ':g', b.g) end
  call('ZADD', p .. ':a:' .. b.g, b.u, id)
  if patient and b.x then call('ZADD', p .. ':x', b.x, id) end
  wake(b.g)
end

local function leave_line(id, b)
  local q = p .. ':q:' .. b.g .. ':' .. b.k
  call('ZREM', q, id)
  call('ZREM', p .. ':a:' .. b.g, id)
  if b.x then call('ZREM', p .. ':x', id) end
end

-- Back in line. `counted`: the attempt was one; `patient`: it waits no longer than it would have.
local function wait_again(id, b, why, counted, alone)
  local tk = p .. ':t:' .. id
  call('HSET', tk, 's', 'q', 'f', '', 'l', why, 'a', counted and b.a or b.a - 1, '+', '1')
  if alone then call('HSET', tk, '1', '1') end
  hold(b, 1)
  billed(b.k, 0, -1)
  enter_line(id, b, not counted)
end

-- To who watches it; its books say whether anybody ever did.
local function tell(id, what)
  local watching = call('SMEMBERS', p .. ':v:' .. id)
  local said = cmsgpack.pack(what)
  for _, pod in ipairs(watching) do call('PUBLISH', p .. ':w:' .. pod, said) end
end

-- What does not belong here is put aside, where people can look at it.
local function put_aside(name, why)
  if call('HLEN', p .. ':y') < 1000 then call('HSET', p .. ':y', name, why) end
  count('quarantined', 1)
end
local function put_key_aside(key)
  call('RENAME', key, p .. ':y:' .. call('INCR', p .. ':yn'))
  put_aside(key, 'a key of a wrong type')
end

-- What lies on the shelf under a name; false: nothing, or its time is over.
local function shelf_entry(name)
  local size, ends = string.match(call('HGET', p .. ':fz', name) or '', '^(%d+) (-?%d+)$')
  return tonumber(size or 0), tonumber(ends or -1)
end
local function shelved(name, at)
  local _, ends = shelf_entry(name)
  if ends >= 0 and ends <= at then return false end
  return call('GET', p .. ':f:' .. name)
end
local function unshelve(name)
  count('shelf', -(shelf_entry(name)))
  call('DEL', p .. ':f:' .. name)
  call('ZREM', p .. ':fn', name)
  call('ZREM', p .. ':fx', name)
  call('HDEL', p .. ':fz', name)
end
