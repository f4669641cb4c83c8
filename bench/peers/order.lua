#!lua
-- order: decide one request of one campaign. What most would write: one script call an order.
--
-- The peers of the comparison share this text, so that they differ in nothing but how they take a request to it.
--
-- Guarantee  units left never drop below 0; one request key has one outcome once it is accepted; no buyer has more
--            units than the limit; the order's entry is written together with all that. What is not ACCEPTED writes
--            nothing.
-- Cost       O(lines); 6 commands and 2 for each SKU
-- Caller     bench/peers: fastapi, fastify, nginx
--
-- KEYS[1] stock     hash    SKU -> units left
-- KEYS[2] buyers    hash    buyer -> units taken
-- KEYS[3] requests  hash    request key -> record
-- KEYS[4] orders    stream  id -> order id, order -> JSON
--
-- ARGV[1] request key  text
-- ARGV[2] record       text   what a repeat is answered from: order id and pay_by
-- ARGV[3] order id     text
-- ARGV[4] order        text   JSON, for the stream
-- ARGV[5] buyer        text
-- ARGV[6] limit        int    most units of a buyer in this campaign
-- then for each line sku text, quantity int >= 1
--
-- Returns {code, text}
--   0 ACCEPTED    text = record
--   1 REPEATED    text = the record it was accepted with
--   2 SOLD_OUT    text = the SKU of which fewer units are left
--   3 OVER_LIMIT  text = ''
local stock, buyers, requests, orders = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local key, record, buyer, limit = ARGV[1], ARGV[2], ARGV[5], tonumber(ARGV[6])

local ACCEPTED, REPEATED, SOLD_OUT, OVER_LIMIT = 0, 1, 2, 3

local earlier = redis.call('HGET', requests, key)
if earlier then return { REPEATED, earlier } end

local wanted, total = {}, 0 -- two lines of one SKU are one wish
for i = 7, #ARGV, 2 do
  local quantity = tonumber(ARGV[i + 1])
  wanted[ARGV[i]] = (wanted[ARGV[i]] or 0) + quantity
  total = total + quantity
end
if tonumber(redis.call('HGET', buyers, buyer) or 0) + total > limit then return { OVER_LIMIT, '' } end
for sku, quantity in pairs(wanted) do
  if tonumber(redis.call('HGET', stock, sku) or 0) < quantity then return { SOLD_OUT, sku } end
end

redis.call('XADD', orders, '*', 'id', ARGV[3], 'order', ARGV[4])
for sku, quantity in pairs(wanted) do redis.call('HINCRBY', stock, sku, -quantity) end
redis.call('HINCRBY', buyers, buyer, total)
redis.call('HSET', requests, key, record)
return { ACCEPTED, record }
