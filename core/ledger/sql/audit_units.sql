-- audit_units: units per SKU in orders of one campaign and shard, up to an epoch and in it to a sequence number.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq
--          $5 when the store began to be read, the ledger's clock
-- Returns  sku
--          sure    units that the store had taken when it was read: no release was ever due for them
--          unsure  units whose release is due, or was done since then
--          (units released before were left again)
-- Orders and messages are read once each, by themselves: a plan from before the sale has filled the tables joins them by
-- indexes that begin with the shard, and reads all of the shard for every line.
WITH mine AS MATERIALIZED (
         SELECT order_id FROM orders
         WHERE shard = $1 AND campaign = $2 AND (epoch, seq) <= ($3::integer, $4::bigint)
     ),
     due AS MATERIALIZED (SELECT order_id FROM outbox WHERE shard = $1 AND topic = 'release'),
     done AS MATERIALIZED (SELECT order_id, at FROM deliveries WHERE shard = $1 AND topic = 'release')
SELECT i.sku,
       coalesce(sum(i.quantity) FILTER (WHERE m.order_id IS NULL AND d.order_id IS NULL), 0)::bigint AS sure,
       coalesce(sum(i.quantity) FILTER (WHERE m.order_id IS NOT NULL OR d.at >= $5), 0)::bigint AS unsure
FROM mine o
JOIN order_items i ON i.shard = $1 AND i.order_id = o.order_id
LEFT JOIN due m ON m.order_id = o.order_id
LEFT JOIN done d ON d.order_id = o.order_id
GROUP BY i.sku;
