#!lua
-- open: install a campaign on a shard, once per epoch.
--
-- Guarantee  G9 stock is set only where no data of the campaign exists: a repeated open changes nothing.
--            Every outcome but DONE writes nothing.
-- Cost       O(fields), at most 4 commands, one round trip.
-- Caller     lua/scripts.py Scripts.open
--
-- KEYS[1] meta      hash  the campaign on this shard
-- KEYS[2] stock     hash  SKU -> left; a:SKU allocation, h:SKU held, s:SKU sold
-- KEYS[3] used      hash  must not exist yet, as those that follow
-- KEYS[4] requests  hash
-- KEYS[5] holds     hash
-- KEYS[6] deltas    hash
-- KEYS[7] moves     hash
--
-- ARGV[1] epoch       int   >= 1
-- ARGV[2] deployment  text  id of the ledger that the campaign is in
-- ARGV[3] n           int   how many field-value pairs of meta follow, 1 to 50
-- ARGV[4...]          text  n pairs of field, value; then pairs of SKU, units (0 or more)
--
-- Returns {code, epoch}
--   0 DONE      installed; epoch as asked
--   1 REPEATED  this epoch of this deployment is here already; epoch as found
--   2 FENCED    another epoch, or another deployment's campaign of this name, is here; epoch as found
--   3 DIRTY     no epoch, but data of the campaign: the store has lost a part; epoch = 0
local meta, stock, used, requests = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local holds, deltas, moves = KEYS[5], KEYS[6], KEYS[7]
local epoch, deployment, n = ARGV[1], ARGV[2], tonumber(ARGV[3])

local DONE, REPEATED, FENCED, DIRTY = 0, 1, 2, 3

local found = redis.call('HMGET', meta, 'epoch', 'deployment')
if found[1] == epoch and found[2] == deployment then return { REPEATED, tonumber(epoch) } end
if found[1] then return { FENCED, tonumber(found[1]) } end
if redis.call('EXISTS', meta, stock, used, requests, holds, deltas, moves) > 0 then return { DIRTY, 0 } end

local units = {}
for i = 4 + 2 * n, #ARGV, 2 do
  local sku, count = ARGV[i], ARGV[i + 1]
  for _, v in ipairs({ sku, count, 'a:' .. sku, count, 'h:' .. sku, 0, 's:' .. sku, 0 }) do
    units[#units + 1] = v
  end
end
-- The stock goes first: without its meta it cannot be sold.
redis.call('HSET', stock, unpack(units))
redis.call('HSET', meta, 'epoch', epoch, 'layout', 2, 'deployment', deployment, 'seq', 0, 'reopen', 0,
  unpack(ARGV, 4, 3 + 2 * n))
return { DONE, tonumber(epoch) }
