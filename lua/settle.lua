#!lua flags=allow-oom
-- settle: end holds as sold, once per order. A hold without units (reserve.lua with `at_payment`, before allocate.lua)
-- has nothing to sell and stays.
--
-- Guarantee  G16 a hold ends once, settled or released: an order without a hold changes nothing.
-- Cost       O(orders + lines), at most 6 commands and 2 per SKU, one round trip.
-- Caller     lua/scripts.py Scripts.settle
--
-- KEYS[1] meta   hash  field epoch
-- KEYS[2] stock  hash  h:SKU -> held; s:SKU -> sold
-- KEYS[3] holds  hash  order id -> what is held (msgpack), limits it was counted for and 16 if it has no units
--                      (1 byte), stamp (12 bytes)
-- KEYS[4] deltas hash  order id -> limits it was counted for, a number, none = its buyer's alone, as of most orders;
--                      `back` = its units came back before (giveback.lua), and stays so
--
-- ARGV[1] epoch  int    the epoch the caller believes in, >= 1
-- ARGV[2...]     bytes  order ids, 1 to 100
--
-- Returns {fenced, codes}
--   fenced  1 = no campaign here, or another epoch: nothing else is meant; 0 otherwise
--   codes   one an order:
--     0 NOTHING  there was no hold, or none with units
--     1 SETTLED  its units are sold
local meta, stock, holds, deltas = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch = ARGV[1]

local NOTHING, SETTLED = 0, 1

if redis.call('HGET', meta, 'epoch') ~= epoch then return { 1, {} } end
local found = redis.call('HMGET', holds, unpack(ARGV, 2))
local back = redis.call('HMGET', deltas, unpack(ARGV, 2))
redis.call('HLEN', stock)               -- a key of the wrong type fails here, before anything is written

local codes, ended, seen, sold, notes = {}, {}, {}, {}, {}
for i = 1, #found do
  local id, hold = ARGV[i + 1], found[i]
  codes[i] = NOTHING
  local counted = hold and string.byte(hold, -13)
  if hold and counted < 16 and not seen[id] then
    seen[id] = true
    codes[i] = SETTLED
    ended[#ended + 1] = id
    if counted ~= 1 and not back[i] then notes[#notes + 1], notes[#notes + 2] = id, counted end
    for _, item in ipairs(cmsgpack.unpack(string.sub(hold, 1, -14))[4]) do
      sold[item[1]] = (sold[item[1]] or 0) + item[2]
    end
  end
end
if #ended == 0 then return { 0, codes } end

-- The notes and the holds go first: a crash of a later write would leave units held for nobody, never sold twice.
if #notes > 0 then redis.call('HSET', deltas, unpack(notes)) end
redis.call('HDEL', holds, unpack(ended))
for sku, units in pairs(sold) do
  redis.call('HINCRBY', stock, 'h:' .. sku, -units)
  redis.call('HINCRBY', stock, 's:' .. sku, units)
end
return { 0, codes }
