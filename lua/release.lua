#!lua flags=allow-oom
-- release: end holds and give their units and limits back, once per order. A hold without units (reserve.lua with
-- `at_payment`, before allocate.lua) has only limits to give back.
--
-- Units that come back to a SKU with nothing left go on sale one lease later, as in restock.lua.
--
-- Guarantee  G16 a hold ends once, settled or released: an order without a hold changes nothing.
-- Cost       O(orders + lines), at most 8 commands and 1 per SKU, one round trip.
-- Caller     lua/scripts.py Scripts.release
--
-- KEYS[1] meta   hash  fields epoch, lease_ms, reopen, r:SKU, count_channel
-- KEYS[2] stock  hash  SKU -> left; h:SKU -> held
-- KEYS[3] used   hash  b:BUYER, s:BUYER SKU, i:IP, d:DEVICE, c:CHANNEL -> units taken
-- KEYS[4] holds  hash  order id -> what is held (msgpack), limits it was counted for and 16 if it has no units
--                      (1 byte), stamp (12 bytes)
--
-- ARGV[1] epoch  int    the epoch the caller believes in, >= 1
-- ARGV[2...]     bytes  order ids, 1 to 100
--
-- Returns {fenced, codes}
--   fenced  1 = no campaign here, or another epoch: nothing else is meant; 0 otherwise
--   codes   one an order:
--     0 NOTHING   there was no hold
--     1 RELEASED  it is gone, and its units are left again
local meta, stock, used, holds = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch = ARGV[1]

local NOTHING, RELEASED = 0, 1

local m = redis.call('HMGET', meta, 'epoch', 'lease_ms', 'reopen', 'count_channel')
if m[1] ~= epoch then return { 1, {} } end
local found = redis.call('HMGET', holds, unpack(ARGV, 2))
redis.call('HLEN', stock)               -- a key of the wrong type fails here, before anything is written
redis.call('HLEN', used)

local codes, ended, seen = {}, {}, {}
local back, skus = {}, {}               -- SKU -> units; SKUs in order of their first meeting
local less, counters = {}, {}           -- counter -> units; counters likewise
local function give(list, sums, name, units)
  if not sums[name] then list[#list + 1] = name end
  sums[name] = (sums[name] or 0) + units
end
for i = 1, #found do
  local id, hold = ARGV[i + 1], found[i]
  codes[i] = NOTHING
  if hold and not seen[id] then
    seen[id] = true
    codes[i] = RELEASED
    ended[#ended + 1] = id
    local counted = string.byte(hold, -13)
    local held = cmsgpack.unpack(string.sub(hold, 1, -14))
    local buyer, items, ip, device = held[3], held[4], held[7], held[8]
    local total = 0
    for _, item in ipairs(items) do
      local sku, quantity = item[1], item[2]
      total = total + quantity
      if counted < 16 then give(skus, back, sku, quantity) end
      if counted % 4 >= 2 then give(counters, less, 's:' .. buyer .. ' ' .. sku, quantity) end
    end
    if counted % 2 >= 1 then give(counters, less, 'b:' .. buyer, total) end
    if counted % 8 >= 4 and ip ~= '' then give(counters, less, 'i:' .. ip, total) end
    if counted % 16 >= 8 and device ~= '' then give(counters, less, 'd:' .. device, total) end
    if m[4] then give(counters, less, 'c:' .. held[1], total) end
  end
end
if #ended == 0 then return { 0, codes } end

local left = #skus > 0 and redis.call('HMGET', stock, unpack(skus))
local kept, gone = {}, {}
if #counters > 0 then
  local taken = redis.call('HMGET', used, unpack(counters))
  for i, name in ipairs(counters) do
    local units = tonumber(taken[i] or 0) - less[name]
    if units > 0 then
      kept[#kept + 1], kept[#kept + 2] = name, units
    else
      gone[#gone + 1] = name
    end
  end
end
local time = redis.call('TIME')
local reopen_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(m[2])
local marks = {}
for i, sku in ipairs(skus) do
  if tonumber(left[i]) == 0 then marks[#marks + 1], marks[#marks + 2] = 'r:' .. sku, string.format('%.0f', reopen_ms) end
end

-- The holds go first: a crash of a later write would leave units unsold, never sold twice.
redis.call('HDEL', holds, unpack(ended))
if #marks > 0 then
  redis.call('HSET', meta, 'reopen', string.format('%.0f', math.max(reopen_ms, tonumber(m[3]))), unpack(marks))
end
for _, sku in ipairs(skus) do
  redis.call('HINCRBY', stock, 'h:' .. sku, -back[sku])
  redis.call('HINCRBY', stock, sku, back[sku])
end
if #kept > 0 then redis.call('HSET', used, unpack(kept)) end
if #gone > 0 then redis.call('HDEL', used, unpack(gone)) end
return { 0, codes }
