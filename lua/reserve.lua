#!lua
-- reserve: decide a batch of requests of one campaign on one shard, as if they had come one after another.
--
-- Guarantee  G1 units left never drop below 0; G2 one request key has one outcome once it is accepted;
--            G3 a hold and its entry in the intake are written together; G6 no limit is exceeded.
--            A request that is not ACCEPTED writes nothing.
-- Cost       O(requests + lines); at most 13 commands for the whole batch, one round trip.
-- Caller     lua/reserve.py
--
-- KEYS[1] meta      hash    fields epoch, state, opens_ms, closes_ms, pay_within_ms, limits, seq, version, reopen, r:SKU
-- KEYS[2] stock     hash    SKU -> left; h:SKU -> held
-- KEYS[3] used      hash    b:BUYER, s:BUYER SKU, i:IP, d:DEVICE -> units taken
-- KEYS[4] requests  hash    channel, NUL, request key -> record and stamp, 36 bytes
-- KEYS[5] holds     hash    order id -> what is held, and stamp
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
-- Returns {fenced, now_ms, pay_by_ms, version, codes, details, leases}
--   fenced   1 = no campaign here, or another epoch: nothing else is meant; 0 otherwise
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
--   leases   flat list of SKU, ms, mark: nothing is left of it, and nothing will be on sale before so many ms have
--            passed; `mark` changes when units came back from outside
local meta, stock, used, requests, holds, intake = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local campaign, epoch, count = ARGV[1], ARGV[2], tonumber(ARGV[3])

local ACCEPTED, REPLAYED, SOLD_OUT, OVER_LIMIT = 0, 1, 2, 3
local NOT_OPEN, CLOSED, PAUSED, KEY_REUSED, NO_SKU = 4, 5, 6, 7, 8

local m = redis.call('HMGET', meta, 'epoch', 'state', 'opens_ms', 'closes_ms', 'pay_within_ms', 'seq', 'version',
  'reopen', 'lease_ms', 'limit_buyer', 'limit_buyer_sku', 'limit_ip', 'limit_device')
if m[1] ~= epoch then return { 1, 0, 0, 0, {}, {}, {} } end
local seq = tonumber(m[6])
local limit_buyer, limit_buyer_sku = tonumber(m[10] or ''), tonumber(m[11] or '')
local limit_ip, limit_device = tonumber(m[12] or ''), tonumber(m[13] or '')

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local pay_by_ms = now_ms + tonumber(m[5])
local stamp = struct.pack('>I6I6', now_ms, pay_by_ms)

local shut
if m[2] == 'paused' then shut = PAUSED
elseif m[2] ~= 'open' or now_ms >= tonumber(m[4]) then shut = CLOSED
elseif now_ms < tonumber(m[3]) then shut = NOT_OPEN end

-- What the whole batch asks about, each thing once.
local at = {}                             -- request -> index of its first argument
local fields = {}                         -- request -> its field
local skus, sku_fields = {}, {}           -- SKU -> its place in sku_fields, which is left, held, left, held, ...
local units_of, unit_fields = {}, {}      -- limit counter -> its place in unit_fields
local function count_for(name)
  if not units_of[name] then
    unit_fields[#unit_fields + 1] = name
    units_of[name] = #unit_fields
  end
end
local a = 4
for r = 1, count do
  at[r], fields[r] = a, ARGV[a]
  local buyer, ip, device, lines = ARGV[a + 4], ARGV[a + 5], ARGV[a + 6], tonumber(ARGV[a + 7])
  if limit_buyer then count_for('b:' .. buyer) end
  if limit_ip and ip ~= '' then count_for('i:' .. ip) end
  if limit_device and device ~= '' then count_for('d:' .. device) end
  a = a + 8
  for _ = 1, lines do
    local sku = ARGV[a]
    if not skus[sku] then
      sku_fields[#sku_fields + 1] = sku
      skus[sku] = #sku_fields
      sku_fields[#sku_fields + 1] = 'h:' .. sku
    end
    if limit_buyer_sku then count_for('s:' .. buyer .. ' ' .. sku) end
    a = a + 2
  end
end

local known = redis.call('HMGET', requests, unpack(fields))
local units = redis.call('HMGET', stock, unpack(sku_fields))
for i = 1, #units do units[i] = tonumber(units[i] or -1) end
local taken = {}
if #unit_fields > 0 then taken = redis.call('HMGET', used, unpack(unit_fields)) end
redis.call('HLEN', holds)                 -- a key of the wrong type fails here, before anything is written

-- Units that came back to an empty SKU wait until no gateway calls it sold out from memory.
local waiting = {}
if now_ms < tonumber(m[8]) then
  for sku, place in pairs(skus) do
    local opens_ms = tonumber(redis.call('HGET', meta, 'r:' .. sku) or 0)
    if now_ms < opens_ms then waiting[sku] = opens_ms - now_ms end
  end
end

local codes, details, empty = {}, {}, {}
local first = {}                          -- field -> record accepted by this very batch
local entry, new_holds, new_requests = { 'h', '' }, {}, {}
local changed = {}                        -- place in unit_fields -> true

local function decide(r)
  local p = at[r]
  local record = ARGV[p + 1]
  local earlier = first[fields[r]] or known[r]
  if earlier then
    details[#details + 1], details[#details + 2] = r, earlier
    if string.sub(earlier, 17, 24) == string.sub(record, 17, 24) then return REPLAYED end
    return KEY_REUSED
  end
  if shut then return shut end

  local buyer, ip, device, lines = ARGV[p + 4], ARGV[p + 5], ARGV[p + 6], tonumber(ARGV[p + 7])
  local basket, wanted, total = {}, {}, 0 -- two lines of one SKU are one wish
  for l = 0, lines - 1 do
    local sku, quantity = ARGV[p + 8 + 2 * l], tonumber(ARGV[p + 9 + 2 * l])
    if not wanted[sku] then basket[#basket + 1] = sku end
    wanted[sku] = (wanted[sku] or 0) + quantity
    total = total + quantity
  end
  local function refuse(code, why)
    details[#details + 1], details[#details + 2] = r, why
    return code
  end
  local function past(name, limit, more)
    local place = units_of[name]
    return tonumber(taken[place] or 0) + more > limit
  end
  if limit_buyer and past('b:' .. buyer, limit_buyer, total) then return refuse(OVER_LIMIT, 'buyer') end
  if limit_buyer_sku then
    for _, sku in ipairs(basket) do
      if past('s:' .. buyer .. ' ' .. sku, limit_buyer_sku, wanted[sku]) then
        return refuse(OVER_LIMIT, 'buyer_sku')
      end
    end
  end
  if limit_ip and ip ~= '' and past('i:' .. ip, limit_ip, total) then return refuse(OVER_LIMIT, 'ip') end
  if limit_device and device ~= '' and past('d:' .. device, limit_device, total) then
    return refuse(OVER_LIMIT, 'device')
  end
  for _, sku in ipairs(basket) do
    local left = units[skus[sku]]
    if left < 0 then return refuse(NO_SKU, sku) end
    if waiting[sku] or left == 0 then empty[sku] = true end
    if waiting[sku] or left < wanted[sku] then return refuse(SOLD_OUT, sku) end
  end

  local function take(name, more)
    local place = units_of[name]
    taken[place] = tonumber(taken[place] or 0) + more
    changed[place] = true
  end
  if limit_buyer then take('b:' .. buyer, total) end
  if limit_ip and ip ~= '' then take('i:' .. ip, total) end
  if limit_device and device ~= '' then take('d:' .. device, total) end
  for _, sku in ipairs(basket) do
    local place = skus[sku]
    units[place] = units[place] - wanted[sku]
    units[place + 1] = units[place + 1] + wanted[sku]
    if limit_buyer_sku then take('s:' .. buyer .. ' ' .. sku, wanted[sku]) end
  end

  local id, held, placed = string.sub(record, 1, 16), ARGV[p + 2], ARGV[p + 3]
  if placed == '' then placed = held end
  record = record .. stamp
  first[fields[r]] = record
  entry[#entry + 1], entry[#entry + 2] = id, placed
  new_holds[#new_holds + 1], new_holds[#new_holds + 2] = id, held .. stamp
  new_requests[#new_requests + 1], new_requests[#new_requests + 2] = fields[r], record
  return ACCEPTED
end
for r = 1, count do codes[r] = decide(r) end

local accepted = #entry / 2 - 1
if accepted > 0 then
  entry[2] = string.format('1|%s|%s|%.0f|%.0f|%.0f', campaign, epoch, now_ms, pay_by_ms, seq + 1)
  local counters = {}
  for place in pairs(changed) do
    counters[#counters + 1], counters[#counters + 2] = unit_fields[place], taken[place]
  end
  local balances = {}
  for i, name in ipairs(sku_fields) do
    if units[i] >= 0 then balances[#balances + 1], balances[#balances + 2] = name, units[i] end
  end
  -- A failing script is not rolled back. The entry goes first: it alone can fail for a reason of its own.
  redis.call('XADD', intake, '*', unpack(entry))
  redis.call('HSET', stock, unpack(balances))
  redis.call('HSET', requests, unpack(new_requests))
  redis.call('HSET', holds, unpack(new_holds))
  redis.call('HSET', meta, 'seq', seq + accepted)
  if #counters > 0 then redis.call('HSET', used, unpack(counters)) end
end

local leases, lease_ms = {}, tonumber(m[9])
for sku in pairs(empty) do
  leases[#leases + 1] = sku
  leases[#leases + 1] = math.min(lease_ms, waiting[sku] or lease_ms)
  leases[#leases + 1] = redis.call('HGET', meta, 'r:' .. sku) or '0'
end
return { 0, now_ms, pay_by_ms, tonumber(m[7]), codes, details, leases }
