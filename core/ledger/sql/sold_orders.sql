-- sold_orders: what orders of one shard took, to be given back.
--
-- Params   $1 shard  $2 order_ids uuid[], 1 to 1,000
-- Returns  order_id, channel, buyer_id, client_ip, device_id, sku, units: a row per order and SKU
SELECT o.order_id, o.channel, o.buyer_id, o.client_ip, o.device_id, i.sku, sum(i.quantity)::bigint AS units
FROM orders o JOIN order_items i ON i.shard = o.shard AND i.order_id = o.order_id
WHERE o.shard = $1 AND o.order_id = ANY ($2::uuid[])
GROUP BY o.shard, o.order_id, i.sku
ORDER BY o.order_id, i.sku;
