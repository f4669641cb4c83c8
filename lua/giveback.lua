#!lua flags=allow-oom
-- giveback: put the units of sold orders on sale again and give their limits back, once per order.
--
-- The opposite of settle.lua, in either order: whichever comes first, the order's units end as sold, as many are left
-- again, and the allocation has grown by them. Units that come back to a SKU with nothing left go on sale one lease
-- later, as in restock.lua.
--
-- Guarantee  G18 an order's units and limits come back at most once; every outcome but RETURNED writes nothing.
-- Cost       O(orders + lines), at most 10 commands and 2 per SKU, one round trip.
-- Caller     lua/scripts.py Scripts.giveback
--
-- KEYS[1] meta    hash  fields epoch, lease_ms, reopen, r:SKU, count_channel
-- KEYS[2] stock   hash  SKU -> left; a:SKU -> allocation of this shard
-- KEYS[3] used    hash  b:BUYER, s:BUYER SKU, i:IP, d:DEVICE, c:CHANNEL -> units taken
-- KEYS[4] holds   hash  order id -> ..., limits it was counted for and 16 if it has no units (1 byte), stamp
--                       (12 bytes): of an order not settled
-- KEYS[5] deltas  hash  order id -> limits it was counted for, a number, none = its buyer's alone (settle.lua), or
--                       `back`; kept as long as the campaign
--
-- ARGV[1] epoch  int  the epoch the caller believes in, >= 1
-- then for each order, 1 to 100 of them
--   id      bytes  order id
--   channel text
--   buyer   text
--   ip      text   '' = not known
--   device  text   '' = not known
--   lines   int    1 to 20; then for each line sku text, units int >= 1
--
-- Returns {fenced, codes}
--   fenced  1 = no campaign here, or another epoch: nothing else is meant; 0 otherwise
--   codes   one an order:
--     0 REPEATED  they came back before
--     1 RETURNED  its units are left again
--     2 UNKNOWN   the campaign does not sell a SKU of it, or its hold has no units: it cannot have been sold
local meta, stock, used, holds, deltas = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local epoch = ARGV[1]

local REPEATED, RETURNED, UNKNOWN = 0, 1, 2

local m = redis.call('HMGET', meta, 'epoch', 'lease_ms', 'reopen', 'count_channel')
if m[1] ~= epoch then return { 1, {} } end

local at, ids, skus, known = {}, {}, {}, {}
local a = 2
while a <= #ARGV do
  at[#at + 1], ids[#ids + 1] = a, ARGV[a]
  local last = a + 5 + 2 * ARGV[a + 5]
  for l = a + 6, last, 2 do
    if not known[ARGV[l]] then
      known[ARGV[l]] = true
      skus[#skus + 1] = ARGV[l]
    end
  end
  a = last + 1
end
local done = redis.call('HMGET', deltas, unpack(ids))
local unsettled = redis.call('HMGET', holds, unpack(ids))
local left = redis.call('HMGET', stock, unpack(skus))
redis.call('HLEN', used)                -- a key of the wrong type fails here, before anything is written
for i, sku in ipairs(skus) do known[sku] = left[i] and tonumber(left[i]) end

local codes, marks, seen = {}, {}, {}
local back, counters, less = {}, {}, {} -- SKU -> units; counters in order of their first meeting; counter -> units
local function take_off(name, units)
  if not less[name] then counters[#counters + 1] = name end
  less[name] = (less[name] or 0) + units
end
local function decide(i)
  local p = at[i]
  local id, channel, buyer, ip, device = ids[i], ARGV[p + 1], ARGV[p + 2], ARGV[p + 3], ARGV[p + 4]
  local last = p + 5 + 2 * ARGV[p + 5]
  if seen[id] or done[i] == 'back' then return REPEATED end
  for l = p + 6, last, 2 do
    if not known[ARGV[l]] then return UNKNOWN end
  end
  local counted = unsettled[i] and string.byte(unsettled[i], -13) or tonumber(done[i] or 1)
  if counted >= 16 then return UNKNOWN end
  seen[id] = true
  marks[#marks + 1], marks[#marks + 2] = id, 'back'
  local total = 0
  for l = p + 6, last, 2 do
    local sku, units = ARGV[l], tonumber(ARGV[l + 1])
    total = total + units
    back[sku] = (back[sku] or 0) + units
    if counted % 4 >= 2 then take_off('s:' .. buyer .. ' ' .. sku, units) end
  end
  if counted % 2 >= 1 then take_off('b:' .. buyer, total) end
  if counted % 8 >= 4 and ip ~= '' then take_off('i:' .. ip, total) end
  if counted >= 8 and device ~= '' then take_off('d:' .. device, total) end
  if m[4] then take_off('c:' .. channel, total) end
  return RETURNED
end
for i = 1, #ids do codes[i] = decide(i) end
if #marks == 0 then return { 0, codes } end

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
local waits = {}
for sku in pairs(back) do
  if known[sku] == 0 then waits[#waits + 1], waits[#waits + 2] = 'r:' .. sku, string.format('%.0f', reopen_ms) end
end

-- The marks go first: a crash of a later write would leave units unsold, never sold twice.
redis.call('HSET', deltas, unpack(marks))
if #waits > 0 then
  redis.call('HSET', meta, 'reopen', string.format('%.0f', math.max(reopen_ms, tonumber(m[3]))), unpack(waits))
end
for sku, units in pairs(back) do
  redis.call('HINCRBY', stock, 'a:' .. sku, units)
  redis.call('HINCRBY', stock, sku, units)
end
if #kept > 0 then redis.call('HSET', used, unpack(kept)) end
if #gone > 0 then redis.call('HDEL', used, unpack(gone)) end
return { 0, codes }
