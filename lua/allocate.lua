#!lua flags=allow-oom
-- allocate: take the units of orders whose holds have none, once per order, as if they had come one after another.
--
-- The second half of reserve.lua with `at_payment`. Units that wait for the end of a lease (r:SKU) are taken too: the
-- lease promises that no request will be accepted, and none is.
--
-- Guarantee  G1 units left never drop below 0; an order gets all of its units, or none.
--            Every outcome but the first ALLOCATED of an order writes nothing.
-- Cost       O(orders + lines), at most 5 commands, one round trip.
-- Caller     lua/scripts.py Scripts.allocate
--
-- KEYS[1] meta   hash  field epoch
-- KEYS[2] stock  hash  SKU -> left; h:SKU -> held
-- KEYS[3] holds  hash  order id -> what is held (msgpack), limits it was counted for and 16 if it has no units
--                      (1 byte), stamp (12 bytes)
--
-- ARGV[1] epoch  int    the epoch the caller believes in, >= 1
-- ARGV[2...]     bytes  order ids, 1 to 100
--
-- Returns {fenced, codes}
--   fenced  1 = no campaign here, or another epoch: nothing else is meant; 0 otherwise
--   codes   one an order:
--     0 NOTHING    there is no hold: it ended
--     1 ALLOCATED  its hold has its units, now or since an earlier call
--     2 TOO_LATE   fewer units are left than it wants of a SKU; its hold is as before
local meta, stock, holds = KEYS[1], KEYS[2], KEYS[3]
local epoch = ARGV[1]

local NOTHING, ALLOCATED, TOO_LATE = 0, 1, 2

if redis.call('HGET', meta, 'epoch') ~= epoch then return { 1, {} } end
local found = redis.call('HMGET', holds, unpack(ARGV, 2))

local wishes = {}                       -- order -> SKU -> units
local fields, places = {}, {}           -- left, held, left, held, ...; SKU -> place of its left
for i = 1, #found do
  if found[i] and string.byte(found[i], -13) >= 16 then
    wishes[i] = {}
    for _, item in ipairs(cmsgpack.unpack(string.sub(found[i], 1, -14))[4]) do
      local sku = item[1]
      wishes[i][sku] = (wishes[i][sku] or 0) + item[2] -- two lines of one SKU are one wish
      if not places[sku] then
        places[sku] = #fields + 1
        fields[#fields + 1], fields[#fields + 2] = sku, 'h:' .. sku
      end
    end
  end
end
local units = #fields > 0 and redis.call('HMGET', stock, unpack(fields)) or {}
for i = 1, #fields do units[i] = tonumber(units[i] or 0) end

local codes, changed, taken, seen = {}, {}, {}, {} -- taken: SKUs; seen: order id -> its code
local function decide(i)
  local wish = wishes[i]
  if not found[i] then return NOTHING end
  if not wish then return ALLOCATED end
  for sku, quantity in pairs(wish) do
    if units[places[sku]] < quantity then return TOO_LATE end
  end
  for sku, quantity in pairs(wish) do
    local place = places[sku]
    units[place], units[place + 1], taken[sku] = units[place] - quantity, units[place + 1] + quantity, true
  end
  local hold = found[i]
  changed[#changed + 1] = ARGV[i + 1]
  changed[#changed + 1] = string.sub(hold, 1, -14) .. string.char(string.byte(hold, -13) - 16) .. string.sub(hold, -12)
  return ALLOCATED
end
for i = 1, #found do
  local id = ARGV[i + 1]
  seen[id] = seen[id] or decide(i)
  codes[i] = seen[id]
end
if #changed == 0 then return { 0, codes } end

local balances = {}
for sku in pairs(taken) do
  local place = places[sku]
  balances[#balances + 1], balances[#balances + 2] = sku, units[place]
  balances[#balances + 1], balances[#balances + 2] = 'h:' .. sku, units[place + 1]
end
-- The units go first: a crash of the later write would leave them held for nobody, never sold twice.
redis.call('HSET', stock, unpack(balances))
redis.call('HSET', holds, unpack(changed))
return { 0, codes }
