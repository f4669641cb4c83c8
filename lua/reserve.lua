#!lua
-- reserve: decide a batch of requests of one campaign on one shard, as if they had come one after another.
--
-- With `at_payment` a hold takes no units (allocate.lua does, when it is paid): stock stays as it is, and is asked all
-- the same, so that nobody orders what is gone.
--
-- Guarantee  G1 units left never drop below 0; G2 one request key has one outcome once it is accepted;
--            G3 a hold and its entry in the intake are written together; G6 no limit is exceeded.
--            A request that is not ACCEPTED writes nothing.
-- Cost       O(requests + lines); at most 12 commands for the whole batch and 2 more for each SKU that is empty or
--            waits, one round trip.
-- Caller     lua/reserve.py
--
-- KEYS[1] meta      hash    fields epoch, state, opens_ms, closes_ms, pay_within_ms, limit_*, count_*, seq,
--                           version, reopen, r:SKU, at_payment
-- KEYS[2] stock     hash    SKU -> left; h:SKU -> held
-- KEYS[3] used      hash    b:BUYER, s:BUYER SKU, i:IP, d:DEVICE -> units taken
-- KEYS[4] requests  hash    channel, NUL, request key -> record and stamp, 36 bytes
-- KEYS[5] holds     hash    order id -> what is held, the limits it was counted for and 16 if it has no units
--                           (1 byte), and stamp
-- KEYS[6] intake    stream  h -> header, order id -> order, ... (core/wire.py)
--
-- ARGV[1] campaign  text
-- ARGV[2] epoch     int    the epoch the caller believes in, >= 1
-- ARGV[3] requests  int    how many follow, 1 to 512; 1,600 lines at most in all
-- then for each request
--   field   text   channel, NUL, request key
--   record  bytes  order id (16) and fingerprint of the body (8)
--   held    bytes  the hold, msgpack
--   placed  bytes  the order for the intake, msgpack; '' = the same as held
--   buyer   text
--   ip      text   '' = not known, counts for no limit
--   device  text   '' = not known, counts for no limit
--   lines   int    1 to 20; then for each line sku text, quantity int >= 1
--
-- Returns {fenced, now_ms, pay_by_ms, version, codes, details, leases, seq}
--   fenced   1 = no campaign here, another epoch, or `recovering`: nothing else is meant; 0 otherwise
--   now_ms, pay_by_ms  of the orders accepted by this call, the store's clock
--   version  of the campaign's definition
--   codes    one a request:
--     0 ACCEPTED    held, and in the intake
--     1 REPLAYED    accepted before with this key and body
--     2 SOLD_OUT    fewer units left than asked for
--     3 OVER_LIMIT  more units than a limit leaves
--     4 NOT_OPEN    before the window
--     5 CLOSED      after the window, or closed
--     6 PAUSED      paused
--     7 KEY_REUSED  this key was accepted with another body
--     8 NO_SKU      the store does not know a SKU of the basket
--   details  flat list of index (from 1), text: the stored record of a REPLAYED request, the SKU of a SOLD_OUT or
--            NO_SKU one, the name of the limit of an OVER_LIMIT one
--   leases   flat list of SKU, ms, mark: nothing of it can be had, and nothing will be on sale before so many ms have
--            passed; `mark` changes when units came back, and again when they are on sale
--   seq      the number of the last order that was accepted on this shard
local meta, stock, used, requests, holds, intake = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local campaign, epoch, count = ARGV[1], ARGV[2], tonumber(ARGV[3])

local ACCEPTED, REPLAYED, SOLD_OUT, OVER_LIMIT = 0, 1, 2, 3
local NOT_OPEN, CLOSED, PAUSED, KEY_REUSED, NO_SKU = 4, 5, 6, 7, 8

local m = redis.call('HMGET', meta, 'epoch', 'state', 'opens_ms', 'closes_ms', 'pay_within_ms', 'seq', 'version',
  'reopen', 'lease_ms', 'limit_buyer', 'limit_buyer_sku', 'limit_ip', 'limit_device',
  'count_buyer_sku', 'count_ip', 'count_device', 'at_payment')
-- A campaign that was rebuilt is not sold before it was audited: until then it is as good as not there.
if m[1] ~= epoch or m[2] == 'recovering' then return { 1, 0, 0, 0, {}, {}, {}, 0 } end
local seq = tonumber(m[6])
local limit_buyer, limit_buyer_sku = tonumber(m[10] or ''), tonumber(m[11] or '')
local limit_ip, limit_device = tonumber(m[12] or ''), tonumber(m[13] or '')
-- Counted is more than limited: a limit that is lifted and set again finds its counters complete. Buyers always are.
local count_buyer_sku, count_ip, count_device = m[14] or limit_buyer_sku, m[15] or limit_ip, m[16] or limit_device
local lease_ms = tonumber(m[9])
local takes_units = m[17] ~= '1'

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local pay_by_ms = now_ms + tonumber(m[5])
local stamp = struct.pack('>I6I6', now_ms, pay_by_ms)

-- 1 buyer, 2 buyer and SKU, 4 IP, 8 device: what release.lua takes off the counters again. 16: the hold has no units.
local counted = 1 + (count_buyer_sku and 2 or 0) + (count_ip and 4 or 0) + (count_device and 8 or 0)
  + (takes_units and 0 or 16)
local tail = string.char(counted) .. stamp

local shut
if m[2] == 'paused' then shut = PAUSED
elseif m[2] ~= 'open' or now_ms >= tonumber(m[4]) then shut = CLOSED
elseif now_ms < tonumber(m[3]) then shut = NOT_OPEN end

-- What the whole batch asks about, each thing once. Explicit counts: `#` walks the table each time, and at 64 requests
-- a batch the Lua code, not its commands, is most of the cost.
local at, fields = {}, {}                           -- request -> index of its first argument; its field
local skus, sku_fields, sku_count = {}, {}, 0       -- SKU -> place in sku_fields, which is left, held, left, held, ...
local places, unit_fields, unit_count = {}, {}, 0   -- limit counter -> place in unit_fields
local buyer_at, ip_at, device_at = {}, {}, {}       -- request -> place of its counter, false = counts for no limit
local function place_of(name)
  local place = places[name]
  if not place then
    unit_count = unit_count + 1
    place = unit_count
    places[name], unit_fields[place] = place, name
  end
  return place
end
local a = 4
for r = 1, count do
  at[r], fields[r] = a, ARGV[a]
  local buyer, ip, device = ARGV[a + 4], ARGV[a + 5], ARGV[a + 6]
  buyer_at[r] = place_of('b:' .. buyer)
  ip_at[r] = count_ip and ip ~= '' and place_of('i:' .. ip)
  device_at[r] = count_device and device ~= '' and place_of('d:' .. device)
  local last = a + 6 + 2 * ARGV[a + 7]
  for l = a + 8, last, 2 do
    local sku = ARGV[l]
    if not skus[sku] then
      skus[sku] = sku_count + 1
      sku_fields[sku_count + 1], sku_fields[sku_count + 2] = sku, 'h:' .. sku
      sku_count = sku_count + 2
    end
    if count_buyer_sku then place_of('s:' .. buyer .. ' ' .. sku) end
  end
  a = last + 2
end

local known = redis.call('HMGET', requests, unpack(fields))
local units = redis.call('HMGET', stock, unpack(sku_fields))
for i = 1, sku_count do units[i] = tonumber(units[i] or -1) end
local taken = redis.call('HMGET', used, unpack(unit_fields))
for i = 1, unit_count do taken[i] = tonumber(taken[i] or 0) end
redis.call('HLEN', holds)                           -- a key of the wrong type fails here, before anything is written

-- Units that came back to an empty SKU wait until no gateway calls it sold out from memory.
local waiting = {}
if now_ms < tonumber(m[8]) then
  for sku in pairs(skus) do
    local wait_ms = tonumber(redis.call('HGET', meta, 'r:' .. sku) or 0) - now_ms
    -- Longer than a lease it cannot be, unless the clock was set back: then nobody waits.
    if wait_ms > 0 and wait_ms <= lease_ms then waiting[sku] = wait_ms end
  end
end

local codes, details, told, empty = {}, {}, 0, {}
local first = {}                                    -- field -> record accepted by this very batch
local entry, new_holds, new_requests, accepted = { 'h', '' }, {}, {}, 0
local function refuse(r, code, why)
  details[told + 1], details[told + 2] = r, why
  told = told + 2
  return code
end

local function decide(r)
  local p = at[r]
  local record = ARGV[p + 1]
  local earlier = first[fields[r]] or known[r]
  if earlier then
    local same = string.sub(earlier, 17, 24) == string.sub(record, 17, 24)
    return refuse(r, same and REPLAYED or KEY_REUSED, earlier)
  end
  if shut then return shut end

  local last = p + 6 + 2 * ARGV[p + 7]
  local basket, size, wanted, total = {}, 0, {}, 0  -- two lines of one SKU are one wish
  for l = p + 8, last, 2 do
    local sku, quantity = ARGV[l], tonumber(ARGV[l + 1])
    if not wanted[sku] then
      size = size + 1
      basket[size] = sku
    end
    wanted[sku] = (wanted[sku] or 0) + quantity
    total = total + quantity
  end
  local buyer, ip, device = buyer_at[r], ip_at[r], device_at[r]
  if limit_buyer and taken[buyer] + total > limit_buyer then return refuse(r, OVER_LIMIT, 'buyer') end
  if limit_buyer_sku then
    for _, sku in ipairs(basket) do
      local place = places['s:' .. ARGV[p + 4] .. ' ' .. sku]
      if taken[place] + wanted[sku] > limit_buyer_sku then return refuse(r, OVER_LIMIT, 'buyer_sku') end
    end
  end
  if limit_ip and ip and taken[ip] + total > limit_ip then return refuse(r, OVER_LIMIT, 'ip') end
  if limit_device and device and taken[device] + total > limit_device then
    return refuse(r, OVER_LIMIT, 'device')
  end
  for i = 1, size do
    local sku = basket[i]
    local left = units[skus[sku]]
    if left < 0 then return refuse(r, NO_SKU, sku) end
    if waiting[sku] or left == 0 then empty[sku] = true end
    if waiting[sku] or left < wanted[sku] then return refuse(r, SOLD_OUT, sku) end
  end

  taken[buyer] = taken[buyer] + total
  if ip then taken[ip] = taken[ip] + total end
  if device then taken[device] = taken[device] + total end
  for i = 1, size do
    local sku = basket[i]
    local place = skus[sku]
    if takes_units then
      units[place] = units[place] - wanted[sku]
      units[place + 1] = units[place + 1] + wanted[sku]
    end
    if count_buyer_sku then
      local counter = places['s:' .. ARGV[p + 4] .. ' ' .. sku]
      taken[counter] = taken[counter] + wanted[sku]
    end
  end

  local id, held, placed = string.sub(record, 1, 16), ARGV[p + 2], ARGV[p + 3]
  record = record .. stamp
  first[fields[r]] = record
  local n = 2 * accepted
  entry[n + 3], entry[n + 4] = id, placed ~= '' and placed or held
  new_holds[n + 1], new_holds[n + 2] = id, held .. tail
  new_requests[n + 1], new_requests[n + 2] = fields[r], record
  accepted = accepted + 1
  return ACCEPTED
end
for r = 1, count do codes[r] = decide(r) end

if accepted > 0 then
  entry[2] = string.format('1|%s|%s|%.0f|%.0f|%.0f', campaign, epoch, now_ms, pay_by_ms, seq + 1)
  local counters, n = {}, 0
  for i = 1, unit_count do
    if taken[i] > 0 then
      counters[n + 1], counters[n + 2] = unit_fields[i], taken[i]
      n = n + 2
    end
  end
  local balances = {}
  n = 0
  for i = 1, sku_count do
    if units[i] >= 0 then
      balances[n + 1], balances[n + 2] = sku_fields[i], units[i]
      n = n + 2
    end
  end
  -- A failing script is not rolled back. The entry goes first: it alone can fail for a reason of its own.
  redis.call('XADD', intake, '*', unpack(entry))
  if takes_units then redis.call('HSET', stock, unpack(balances)) end
  redis.call('HSET', requests, unpack(new_requests))
  redis.call('HSET', holds, unpack(new_holds))
  redis.call('HSET', meta, 'seq', seq + accepted)
  if counters[1] then redis.call('HSET', used, unpack(counters)) end
end

local leases = {}
for sku in pairs(empty) do
  leases[#leases + 1] = sku
  leases[#leases + 1] = math.min(lease_ms, waiting[sku] or lease_ms)
  leases[#leases + 1] = (waiting[sku] and 'w' or '') .. (redis.call('HGET', meta, 'r:' .. sku) or '0')
end
return { 0, now_ms, pay_by_ms, tonumber(m[7]), codes, details, leases, seq + accepted }
