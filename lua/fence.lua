#!lua flags=allow-oom
-- fence: take a campaign on a shard out of service, and empty it to be rebuilt under a new epoch.
--
-- Without the field `epoch` every other script finds no campaign here: what is half rebuilt is touched by nobody.
--
-- Guarantee  G23 an older epoch never fences a newer one off, nor another deployment's campaign; what was emptied for an
--            epoch is not emptied for it again. Every outcome but DONE writes nothing.
-- Cost       O(1), at most 4 commands, one round trip; big hashes are freed in the background.
-- Caller     lua/scripts.py Scripts.fence
--
-- KEYS[1] meta      hash  loses `epoch`, gets `rebuilding` = the new one, and state `recovering`
-- KEYS[2] stock     hash  these are unlinked
-- KEYS[3] used      hash
-- KEYS[4] requests  hash
-- KEYS[5] holds     hash
-- KEYS[6] deltas    hash
-- KEYS[7] moves     hash
--
-- ARGV[1] epoch       int   the new one, >= 2
-- ARGV[2] deployment  text  id of the ledger that the campaign is in
-- ARGV[3] empty       int   1 = the data go, but for `seq` and `told`; 0 = they stay as they are
--
-- Returns {code, epoch}
--   0 DONE      as wanted; epoch as asked
--   1 REPEATED  it was so before; epoch as asked
--   2 FENCED    this epoch is in service already, or a newer one is here; epoch as found
--   3 FOREIGN   another deployment's campaign of this name is here; epoch as found
local meta, stock, used, requests = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local holds, deltas, moves = KEYS[5], KEYS[6], KEYS[7]
local epoch, deployment, empty = ARGV[1], ARGV[2], ARGV[3] == '1'

local DONE, REPEATED, FENCED, FOREIGN = 0, 1, 2, 3

local m = redis.call('HMGET', meta, 'epoch', 'rebuilding', 'emptied', 'deployment', 'seq', 'told')
local here, rebuilding = tonumber(m[1] or 0), tonumber(m[2] or 0)
if m[4] and m[4] ~= deployment then return { FOREIGN, math.max(here, rebuilding) } end
if here >= tonumber(epoch) or rebuilding > tonumber(epoch) then return { FENCED, math.max(here, rebuilding) } end
if empty and m[3] == epoch or not empty and m[2] == epoch then return { REPEATED, tonumber(epoch) } end

if empty then
  redis.call('UNLINK', meta, stock, used, requests, holds, deltas, moves)
  -- The number of the last order may be known from here alone.
  redis.call('HSET', meta, 'emptied', epoch, 'seq', m[5] or 0, 'told', m[6] or 0)
else
  redis.call('HDEL', meta, 'epoch')
end
redis.call('HSET', meta, 'rebuilding', epoch, 'state', 'recovering', 'deployment', deployment)
return { DONE, tonumber(epoch) }
