-- dropped_orders: which of these orders of one shard were set aside and given up: they stand nowhere in the ledger.
--
-- Params   $1 shard  $2 order_ids uuid[], 1 to 10,000
-- Returns  order_id
SELECT order_id FROM dead_letters l
WHERE shard = $1 AND order_id = ANY ($2::uuid[])
  AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = l.shard AND o.order_id = l.order_id)
GROUP BY shard, order_id
HAVING bool_and(dropped_at IS NOT NULL);
