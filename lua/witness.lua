#!lua flags=allow-oom
-- witness: a process says up to which number it was told of orders; a store that knows fewer has lost some.
--
-- The server may be an older copy of itself that agrees with the ledger, as the orders after the copy were not drained;
-- and since it was started it may have given the same numbers to other orders.
--
-- Guarantee  G24 a campaign of whose orders this shard lost some is out of service until it is rebuilt; an older epoch
--            never stops a newer one. KNOWN and FENCED write nothing.
-- Cost       O(1), at most 3 commands, one round trip.
-- Caller     lua/witness.py
--
-- KEYS[1] meta  hash  gets `told` = the greatest number that anybody was told of, and one more for each order whose
--                     number was given again; may lose `epoch`. Its `judged` was written by judged.lua.
--
-- ARGV[1] epoch  int   of the order with that number
-- ARGV[2] seq    int   the number
-- ARGV[3] run    text  run_id of the server that told it
--
-- Returns {code, seq}
--   0 KNOWN   the store knows this number; seq as it knows it
--   1 BEHIND  it did not: the campaign was in service here, and is not any more; seq as the store knew it
--   2 FENCED  a newer epoch is in service here: too late to be of use; seq 0
--   3 KEPT    as BEHIND, but the campaign was out of service already: a rebuild finds the number here
local meta, epoch, seq, run = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]

local KNOWN, BEHIND, FENCED, KEPT = 0, 1, 2, 3

local m = redis.call('HMGET', meta, 'epoch', 'seq', 'told', 'judged')
local here, last = tonumber(m[1] or 0), tonumber(m[2] or 0)
if here > tonumber(epoch) then return { FENCED, 0 } end

-- What was there when the first run after `run` began. A run that is not in the list is older than all of it.
local list, known = m[4] or '', last
local _, at = string.find(list, run .. ':%d+')
for count in string.gmatch(string.sub(list, (at or 0) + 1), ':(%d+)') do known = math.min(known, tonumber(count)) end
if known >= seq then return { KNOWN, known } end

-- Also where there is nothing at all: a rebuild reads it here, and counts from there on.
local told = last + seq - known
redis.call('HSET', meta, 'told', math.max(told, tonumber(m[3] or 0)), 'state', 'recovering')
if m[1] then redis.call('HDEL', meta, 'epoch') end
return { m[1] and BEHIND or KEPT, known }
