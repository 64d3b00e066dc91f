-- ARGV: worker, ids that it knows it holds and fences that it had. After a lost answer: what it was
-- given and never heard of goes back in line, and the attempt does not count. Answers how many.
-- A fence that it had and a server that went back in time gives it once more stays until its lease
-- is over: it was an attempt.
local known, back = {}, 0
for i = 2, #ARGV do known[ARGV[i]] = true end
for _, id in ipairs(call('ZRANGE', p .. ':l', 0, -1)) do
  if not known[id] then
    local b = books(id)
    if b.s == 'r' and owner_of(b) == ARGV[1] and not known[b.f] then
      call('ZREM', p .. ':l', id)
      wait_again(id, b, 'answer_lost', false, false)
      back = back + 1
    end
  end
end
settle()
return back
