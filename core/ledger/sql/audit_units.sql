-- audit_units: units per SKU in orders of one campaign and shard, up to an epoch and in it to a sequence number.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq
--          $5 when the store began to be read, the ledger's clock
-- Returns  sku
--          sure    units that the store had taken when it was read: no release was ever due for them
--          unsure  units whose release is due, or was done since then
--          (units released before were left again)
SELECT i.sku,
       coalesce(sum(i.quantity) FILTER (WHERE m.order_id IS NULL AND d.order_id IS NULL), 0)::bigint AS sure,
       coalesce(sum(i.quantity) FILTER (WHERE m.order_id IS NOT NULL OR d.at >= $5), 0)::bigint AS unsure
FROM orders o
JOIN order_items i ON i.shard = o.shard AND i.order_id = o.order_id
LEFT JOIN outbox m ON m.shard = o.shard AND m.order_id = o.order_id AND m.topic = 'release'
LEFT JOIN deliveries d ON d.shard = o.shard AND d.order_id = o.order_id AND d.topic = 'release'
WHERE o.shard = $1 AND o.campaign = $2 AND (o.epoch, o.seq) <= ($3::integer, $4::bigint)
GROUP BY i.sku;
