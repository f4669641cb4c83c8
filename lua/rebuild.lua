#!lua
-- rebuild: install a part of a campaign on a shard that fence.lua has emptied for this epoch; the last part puts the
-- epoch in service.
--
-- Guarantee  G23 nothing is written unless the campaign is being rebuilt under this very epoch; a repeated part changes
--            nothing. Every outcome but DONE writes nothing.
-- Cost       O(pairs), at most 3 commands, one round trip.
-- Caller     lua/scripts.py Scripts.rebuild
--
-- KEYS[1] meta    hash  fields rebuilding, emptied, epoch
-- KEYS[2] target  hash  that gets the pairs: stock, used, requests, holds or deltas; of the last part meta itself
--
-- ARGV[1] epoch  int   as fenced
-- ARGV[2] last   int   1 = the epoch is in service afterwards; 0 = more parts follow
-- ARGV[3...]     text  pairs of field, value, 1 to 2,000
--
-- Returns {code}
--   0 DONE      installed
--   1 REPEATED  the epoch is in service already
--   2 FENCED    another epoch is being rebuilt here, or none
local meta, target = KEYS[1], KEYS[2]
local epoch, last = ARGV[1], ARGV[2] == '1'

local DONE, REPEATED, FENCED = 0, 1, 2

local m = redis.call('HMGET', meta, 'rebuilding', 'emptied', 'epoch')
if m[3] == epoch and last then return { REPEATED } end
if m[1] ~= epoch or m[2] ~= epoch then return { FENCED } end

redis.call('HSET', target, unpack(ARGV, 3))
if last then
  redis.call('HSET', meta, 'epoch', epoch)
  -- What was told since the base was read comes too late here: whoever said it tells the ledger (gateway/witness.py).
  redis.call('HDEL', meta, 'rebuilding', 'emptied', 'told')
end
return { DONE }
