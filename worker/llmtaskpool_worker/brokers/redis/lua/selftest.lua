-- Whether this server lets a script do what the queue does: commands, keys, and memory of its own.
local k = p .. ':selftest'
call('HSET', k .. ':h', 'a', 1)
call('ZADD', k .. ':z', 1, 'a')
call('SADD', k .. ':s', 'a')
call('SET', k .. ':v', cmsgpack.pack({ 'a', 0.25 }), 'PX', 1000)
local back = cmsgpack.unpack(call('GET', k .. ':v'))
call('PUBLISH', k, 'a')
local ok = back[2] == 0.25 and now() > 0 and call('ZRANGE', k .. ':z', 0, 0)[1] == 'a'
call('DEL', k .. ':h', k .. ':z', k .. ':s', k .. ':v')
return ok and 'ok' or 'wrong'
