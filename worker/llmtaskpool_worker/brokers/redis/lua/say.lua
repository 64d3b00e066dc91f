-- ARGV: a message, then pods: into the inbox of each.
for i = 2, #ARGV do call('PUBLISH', p .. ':w:' .. ARGV[i], ARGV[1]) end
return 1
