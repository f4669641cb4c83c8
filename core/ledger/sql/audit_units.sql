-- audit_units: units per SKU in orders of one campaign, epoch and shard up to a sequence number.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq
-- Returns  sku, units
SELECT i.sku, sum(i.quantity)::bigint AS units
FROM orders o JOIN order_items i ON i.shard = o.shard AND i.order_id = o.order_id
WHERE o.shard = $1 AND o.campaign = $2 AND o.epoch = $3 AND o.seq <= $4
GROUP BY i.sku;
