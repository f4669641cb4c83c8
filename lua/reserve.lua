#!lua
-- reserve: decide a batch of requests of one campaign on one shard, as if they had come one after another.
--
-- With `at_payment` a hold takes no units (allocate.lua does, when it is paid): stock stays as it is, and is asked all
-- the same, so that nobody orders what is gone.
--
-- Guarantee  G1 units left never drop below 0; G2 one request key has one outcome once it is accepted;
--            G3 a hold and its entry in the intake are written together; G6 no limit is exceeded.
--            A request that is not ACCEPTED writes nothing.
-- Cost       O(requests + lines); at most 13 commands for the whole batch and 2 more for each SKU that is empty or
--            waits, one round trip.
-- Caller     lua/reserve.py
--
-- KEYS[1] meta      hash    fields epoch, layout, state, opens_ms, closes_ms, pay_within_ms, limit_*, count_*, seq,
--                           version, reopen, r:SKU, at_payment, shares (JSON: channel -> most units here)
-- KEYS[2] stock     hash    SKU -> left; h:SKU -> held
-- KEYS[3] used      hash    b:BUYER, s:BUYER SKU, i:IP, d:DEVICE, c:CHANNEL -> units taken
-- KEYS[4] requests  hash    digest of channel and request key (12 bytes) -> record and stamp, 36 bytes
-- KEYS[5] holds     hash    order id -> what is held, the limits it was counted for and 16 if it has no units
--                           (1 byte), and stamp
-- KEYS[6] intake    stream  h -> header, o -> orders (core/wire.py)
--
-- ARGV[1] campaign  text
-- ARGV[2] epoch     int    the epoch the caller believes in, >= 1
-- ARGV[3] requests  int    how many, 1 to 512; 1,600 lines at most in all their baskets
-- ARGV[4] fields    bytes  of each request 12: the digest of its channel and key
-- ARGV[5] prints    bytes  of each request 8: the fingerprint of its body
-- ARGV[6] orders    bytes  of each request: order id (16), length (4, big-endian), the order for the intake
-- ARGV[7] asked     bytes  msgpack, {baskets, which, buyers, unlike}: the baskets, each {SKU, quantity, SKU, quantity,
--                          ...}; of each request which basket, from 1, or {} = all the first; of each request b:BUYER;
--                          true = no two of the batch have a field, or a buyer, in common
-- ARGV[8] ips       bytes  msgpack, of each request i:IP, '' = not known, counts for no limit; '' = none is known
-- ARGV[9] devices   bytes  likewise d:DEVICE
-- then pairs of a request (from 1) and its hold, msgpack: of those whose hold is not the same as the order
--
-- Returns {fenced, now_ms, pay_by_ms, version, codes, details, leases, seq}
--   fenced   1 = no campaign here, another epoch or layout, or `recovering`: nothing else is meant; 0 otherwise
--   now_ms, pay_by_ms  of the orders accepted by this call, the store's clock
--   version  of the campaign's definition
--   codes    one a request, or none = all ACCEPTED:
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
  'count_buyer_sku', 'count_ip', 'count_device', 'at_payment', 'layout', 'count_channel', 'shares')
-- A campaign that was rebuilt is not sold before it was audited: until then it is as good as not there. So is one that
-- an older version wrote, whose request keys have other names.
if m[1] ~= epoch or m[2] == 'recovering' or m[18] ~= '2' then return { 1, 0, 0, 0, {}, {}, {}, 0 } end
local seq = tonumber(m[6])
local limit_buyer, limit_buyer_sku = tonumber(m[10] or ''), tonumber(m[11] or '')
local limit_ip, limit_device = tonumber(m[12] or ''), tonumber(m[13] or '')
-- Counted is more than limited: a limit that is lifted and set again finds its counters complete. Buyers always are.
local count_buyer_sku, count_ip, count_device = m[14] or limit_buyer_sku, m[15] or limit_ip, m[16] or limit_device
-- Channels are counted from the opening on, or never: release.lua and giveback.lua go by this field too.
local count_channel = m[19]
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

local fields = { struct.unpack(string.rep('c12', count), ARGV[4]) }
local prints = { struct.unpack(string.rep('c8', count), ARGV[5]) }
local orders = { struct.unpack('>' .. string.rep('c16I4c0', count), ARGV[6]) } -- id, order, id, order, ...
local asked = cmsgpack.unpack(ARGV[7])
local which, buyers = asked[2], asked[3]

-- Each different basket once: its SKUs, the wish for each (two lines of one SKU are one wish), and the units in all.
local baskets = {}
local skus, sku_fields, sku_count = {}, {}, 0       -- SKU -> place in sku_fields, which is left, held, left, held, ...
for b, lines in ipairs(asked[1]) do
  local basket, wanted, total = {}, {}, 0
  for l = 1, #lines, 2 do
    local sku, quantity = lines[l], lines[l + 1]
    if not wanted[sku] then basket[#basket + 1] = sku end
    wanted[sku] = (wanted[sku] or 0) + quantity
    total = total + quantity
    if not skus[sku] then
      skus[sku] = sku_count + 1
      sku_fields[sku_count + 1], sku_fields[sku_count + 2] = sku, 'h:' .. sku
      sku_count = sku_count + 2
    end
  end
  baskets[b] = { skus = basket, wanted = wanted, total = total, times = 0 }
end

local known = redis.call('HMGET', requests, unpack(fields, 1, count))
local units = redis.call('HMGET', stock, unpack(sku_fields))
for i = 1, sku_count do units[i] = tonumber(units[i] or -1) end
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

-- What is to be written. Of orders it is flat pairs, `n` long; `entry` is all orders of the batch unless some are
-- refused.
local entry, new_holds, new_requests, n = ARGV[6], orders, {}, 0
local counters, counters_n = {}, 0
local codes, details, told, empty = {}, {}, 0, {}

-- The plain case, nearly all of a sale: every request is new and can be accepted, whichever comes first, and only buyers
-- are counted. True if it is so; otherwise nothing is decided.
local function all_accepted()
  if shut or count_buyer_sku or count_ip or count_device or count_channel or not asked[4] then return false end
  if which[1] then
    for r = 1, count do
      local basket = baskets[which[r]]
      basket.times = basket.times + 1
    end
  else
    baskets[1].times = count
  end
  local wishes = {}
  for _, basket in ipairs(baskets) do
    for _, sku in ipairs(basket.skus) do
      wishes[sku] = (wishes[sku] or 0) + basket.wanted[sku] * basket.times
      if waiting[sku] or wishes[sku] > units[skus[sku]] then return false end
    end
  end
  local taken = redis.call('HMGET', used, unpack(buyers))
  local i = 1
  for r = 1, count do
    if known[r] then return false end
    local total = (taken[r] or 0) + baskets[which[r] or 1].total
    if limit_buyer and total > limit_buyer then return false end
    new_requests[i], new_requests[i + 1] = fields[r], orders[i] .. prints[r] .. stamp
    counters[i], counters[i + 1] = buyers[r], total
    i = i + 2
  end
  n, counters_n = 2 * count, 2 * count
  for h = 10, #ARGV, 2 do orders[2 * ARGV[h]] = ARGV[h + 1] end
  for o = 2, n, 2 do orders[o] = orders[o] .. tail end
  for sku, wish in pairs(wishes) do
    local place = skus[sku]
    units[place], units[place + 1] = units[place] - wish, units[place + 1] + wish
  end
  return true
end

-- The general case: one after another.
local function decide_each()
  local places, names, name_count = {}, {}, 0       -- limit counter -> place in names
  local function place_of(name)
    local place = places[name]
    if not place then
      name_count = name_count + 1
      place = name_count
      places[name], names[place] = place, name
    end
    return place
  end
  local ips = count_ip and ARGV[8] ~= '' and cmsgpack.unpack(ARGV[8]) or {}
  local devices = count_device and ARGV[9] ~= '' and cmsgpack.unpack(ARGV[9]) or {}
  local function known_place(name) return name and name ~= '' and place_of(name) end
  local shares = count_channel and cjson.decode(m[20] or '{}')
  local share_of = {}                               -- request -> most units of its channel, nil = no limit
  -- Request -> place of its counter, false = counts for no limit.
  local buyer_at, ip_at, device_at, channel_at = {}, {}, {}, {}
  local function with_sku(r, sku) return 's' .. string.sub(buyers[r], 2) .. ' ' .. sku end
  for r = 1, count do
    buyer_at[r], ip_at[r], device_at[r] = place_of(buyers[r]), known_place(ips[r]), known_place(devices[r])
    if count_buyer_sku then
      for _, sku in ipairs(baskets[which[r] or 1].skus) do place_of(with_sku(r, sku)) end
    end
    if count_channel then
      local _, channel = cmsgpack.unpack_one(orders[2 * r], 1) -- the first part of the order, behind the array's byte
      share_of[r], channel_at[r] = shares[channel], place_of('c:' .. channel)
    end
  end
  local taken = redis.call('HMGET', used, unpack(names))
  for i = 1, name_count do taken[i] = tonumber(taken[i] or 0) end

  local own = {}                                    -- request -> its hold, if that is not the same as the order
  for h = 10, #ARGV, 2 do own[tonumber(ARGV[h])] = ARGV[h + 1] end
  local first = {}                                  -- field -> record accepted by this very batch
  local pieces = {}
  new_holds, new_requests = {}, {}
  local function refuse(r, code, why)
    details[told + 1], details[told + 2] = r, why
    told = told + 2
    return code
  end

  local function decide(r)
    local field, print = fields[r], prints[r]
    local earlier = first[field] or known[r]
    if earlier then
      return refuse(r, string.sub(earlier, 17, 24) == print and REPLAYED or KEY_REUSED, earlier)
    end
    if shut then return shut end

    local basket = baskets[which[r] or 1]
    local wanted, total = basket.wanted, basket.total
    local buyer, ip, device, channel = buyer_at[r], ip_at[r], device_at[r], channel_at[r]
    if limit_buyer and taken[buyer] + total > limit_buyer then return refuse(r, OVER_LIMIT, 'buyer') end
    if limit_buyer_sku then
      for _, sku in ipairs(basket.skus) do
        if taken[places[with_sku(r, sku)]] + wanted[sku] > limit_buyer_sku then
          return refuse(r, OVER_LIMIT, 'buyer_sku')
        end
      end
    end
    if limit_ip and ip and taken[ip] + total > limit_ip then return refuse(r, OVER_LIMIT, 'ip') end
    if limit_device and device and taken[device] + total > limit_device then
      return refuse(r, OVER_LIMIT, 'device')
    end
    if share_of[r] and taken[channel] + total > share_of[r] then return refuse(r, OVER_LIMIT, 'channel_share') end
    for _, sku in ipairs(basket.skus) do
      local left = units[skus[sku]]
      if left < 0 then return refuse(r, NO_SKU, sku) end
      if waiting[sku] or left == 0 then empty[sku] = true end
      if waiting[sku] or left < wanted[sku] then return refuse(r, SOLD_OUT, sku) end
    end

    taken[buyer] = taken[buyer] + total
    if ip then taken[ip] = taken[ip] + total end
    if device then taken[device] = taken[device] + total end
    if channel then taken[channel] = taken[channel] + total end
    for _, sku in ipairs(basket.skus) do
      local place = skus[sku]
      if takes_units then
        units[place] = units[place] - wanted[sku]
        units[place + 1] = units[place + 1] + wanted[sku]
      end
      if count_buyer_sku then
        local counter = places[with_sku(r, sku)]
        taken[counter] = taken[counter] + wanted[sku]
      end
    end

    local id, order = orders[2 * r - 1], orders[2 * r]
    first[field] = id .. print .. stamp
    pieces[#pieces + 1] = id .. struct.pack('>I4', #order) .. order
    new_holds[n + 1], new_holds[n + 2] = id, (own[r] or order) .. tail
    new_requests[n + 1], new_requests[n + 2] = field, first[field]
    n = n + 2
    return ACCEPTED
  end
  for r = 1, count do codes[r] = decide(r) end

  if n < 2 * count then entry = table.concat(pieces) else codes = {} end
  for i = 1, name_count do
    if taken[i] > 0 then
      counters[counters_n + 1], counters[counters_n + 2] = names[i], taken[i]
      counters_n = counters_n + 2
    end
  end
end

if not all_accepted() then
  counters = {}
  decide_each()
end

local accepted = n / 2
if accepted > 0 then
  local header = string.format('2|%s|%s|%.0f|%.0f|%.0f|%d', campaign, epoch, now_ms, pay_by_ms, seq + 1, accepted)
  local balances, b = {}, 0
  for i = 1, sku_count do
    if units[i] >= 0 then
      balances[b + 1], balances[b + 2] = sku_fields[i], units[i]
      b = b + 2
    end
  end
  -- A failing script is not rolled back. The entry goes first: it alone can fail for a reason of its own.
  redis.call('XADD', intake, '*', 'h', header, 'o', entry)
  if takes_units then redis.call('HSET', stock, unpack(balances)) end
  redis.call('HSET', requests, unpack(new_requests, 1, n))
  redis.call('HSET', holds, unpack(new_holds, 1, n))
  redis.call('HSET', meta, 'seq', seq + accepted)
  if counters_n > 0 then redis.call('HSET', used, unpack(counters, 1, counters_n)) end
end

local leases = {}
for sku in pairs(empty) do
  leases[#leases + 1] = sku
  leases[#leases + 1] = math.min(lease_ms, waiting[sku] or lease_ms)
  leases[#leases + 1] = (waiting[sku] and 'w' or '') .. (redis.call('HGET', meta, 'r:' .. sku) or '0')
end
return { 0, now_ms, pay_by_ms, tonumber(m[7]), codes, details, leases, seq + accepted }
