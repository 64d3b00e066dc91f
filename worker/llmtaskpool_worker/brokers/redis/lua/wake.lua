-- ARGV: groups: whoever was woken for them has not looked.
for i = 1, #ARGV do
  if call('EXISTS', p .. ':c:' .. ARGV[i]) == 1 then wake(ARGV[i]) end
end
return 1
