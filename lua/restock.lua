#!lua flags=allow-oom
-- restock: add units of one SKU, or withdraw unsold ones, at most once per move id.
--
-- Units that come from outside to a SKU with nothing left go on sale one lease later: by then no gateway still
-- answers "sold out" from memory, so a repeated request key is never refused after it was accepted. Units of a transfer
-- were on sale when they left, and as long as they are on their way no search ends with "sold out" (gateway/balance.py):
-- no gateway answers so, and where they arrive all that waits goes on sale with them.
--
-- Guarantee  G7 units left never drop below 0; G8 one move id changes stock at most once.
--            Every outcome but DONE writes nothing.
-- Cost       O(1), at most 9 commands, one round trip.
-- Caller     lua/scripts.py Scripts.restock
--
-- KEYS[1] meta    hash  the campaign on this shard; fields epoch, lease_ms, reopen, r:SKU
-- KEYS[2] stock   hash  SKU -> left; a:SKU -> allocation of this shard
-- KEYS[3] deltas  hash  move id -> SKU, a blank, units; kept as long as the campaign
-- KEYS[4] moves   hash  move id -> destination, SKU, units: withdrawn here, not yet seen to arrive there
--
-- ARGV[1] epoch  int   the epoch the caller believes in, >= 1
-- ARGV[2] id     text  move id, 1 to 100 ASCII characters
-- ARGV[3] sku    text
-- ARGV[4] units  int   to add; negative withdraws
-- ARGV[5] to     text  shard that a transfer goes to or comes from; '' = from or to outside
--
-- Returns {code, left}
--   0 DONE      left = units after the change
--   1 REPEATED  left = units now
--   2 TOO_FEW   left = units now, fewer than to be withdrawn, or not on sale yet
--   3 FENCED    left = 0; no campaign here, or another epoch
--   4 UNKNOWN   left = 0; the campaign does not sell this SKU
local meta, stock, deltas, moves = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch, id, sku, units, to = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

local DONE, REPEATED, TOO_FEW, FENCED, UNKNOWN = 0, 1, 2, 3, 4

local m = redis.call('HMGET', meta, 'epoch', 'lease_ms', 'r:' .. sku, 'reopen')
if m[1] ~= epoch then return { FENCED, 0 } end
local left = tonumber(redis.call('HGET', stock, sku) or -1)
if left < 0 then return { UNKNOWN, 0 } end
if redis.call('HEXISTS', deltas, id) == 1 then return { REPEATED, left } end
if left + units < 0 then return { TOO_FEW, left } end

redis.call('HLEN', moves)                 -- a key of the wrong type fails here, before anything is written
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local wait_ms = tonumber(m[3] or 0) - now_ms
if units < 0 and to ~= '' and wait_ms > 0 and wait_ms <= tonumber(m[2]) then return { TOO_FEW, left } end

-- A failing script is not rolled back. The id is written first: a crash of a later write
-- would leave units unsold, never sold twice.
redis.call('HSET', deltas, id, sku .. ' ' .. units)
if units < 0 and to ~= '' then redis.call('HSET', moves, id, to .. ' ' .. sku .. ' ' .. -units) end
if units > 0 and to == '' and left == 0 then
  local opens_ms = now_ms + tonumber(m[2])
  local last_ms = math.max(opens_ms, tonumber(m[4] or 0)) -- of all SKUs, also when the clock was set back
  redis.call('HSET', meta, 'r:' .. sku, string.format('%.0f', opens_ms), 'reopen', string.format('%.0f', last_ms))
elseif units > 0 and to ~= '' and wait_ms > 0 then
  redis.call('HSET', meta, 'r:' .. sku, string.format('%.0f', now_ms))
end
redis.call('HINCRBY', stock, 'a:' .. sku, units)
return { DONE, redis.call('HINCRBY', stock, sku, units) }
