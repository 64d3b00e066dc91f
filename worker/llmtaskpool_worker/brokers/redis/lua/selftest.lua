-- Whether this server lets a script do what the queue does: keys, memory of its own, and each of its
-- commands, which a user may be forbidden: then a script would end in its middle.
local k = p .. ':selftest'
local h, z, s, v, l = k .. ':h', k .. ':z', k .. ':s', k .. ':v', k .. ':l'
call('HSET', h, 'a', 1, 'b', 2)
call('HINCRBY', h, 'a', 1)
call('HMGET', h, 'a', 'b')
call('HGETALL', h)
local fields = call('HLEN', h) + call('HEXISTS', h, 'b')
call('HDEL', h, 'b')
call('ZADD', z, 1, 'a', 2, 'b', 3, 'c', 4, 'd')
call('ZREM', z, 'b')
call('ZREMRANGEBYRANK', z, 1, 1)
call('ZREMRANGEBYSCORE', z, 4, 4)
local first = call('ZRANGE', z, 0, 0)[1] == call('ZREVRANGE', z, 0, 0)[1]
  and call('ZRANGEBYSCORE', z, 1, 1)[1] == call('ZREVRANGEBYSCORE', z, 1, 1)[1]
call('SADD', s, 'a', 'b')
call('SREM', s, 'b')
local members = #call('SMEMBERS', s) + call('SCARD', s) + #call('SRANDMEMBER', s, 1)
call('SET', v, cmsgpack.pack({ 'a', 0.25 }), 'PX', 1000)
local back = cmsgpack.unpack(call('GET', v))
call('RENAME', v, v .. '2')
call('PERSIST', v .. '2')
call('PEXPIRE', v .. '2', 1000)
call('PEXPIREAT', v .. '2', now() + 1000)
call('INCR', v)
call('LPUSH', l, 'a')
call('RPUSH', l, 'b', 'c')
call('LTRIM', l, 0, 1)
call('LPOP', l)
local listed = call('LLEN', l) + #call('LRANGE', l, 0, -1)
call('PUBLISH', k, 'a')
local ok = back[2] == 0.25 and now() > 0 and first and fields == 3 and members == 3 and listed == 2
  and call('ZCARD', z) == 1 and call('EXISTS', v) == 1 and call('HGET', h, 'a') == '2'
call('DEL', h, z, s, v, v .. '2', l)
return ok and 'ok' or 'wrong'
