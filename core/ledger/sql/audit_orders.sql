-- audit_orders: what the ledger has of one campaign, epoch and shard up to a sequence number.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq: orders accepted at the store's reading
-- Returns  persisted  orders up to seq
--          dead       dead letters up to seq, but for those whose order is in the ledger after all
--          later      orders beyond seq, or before the first
SELECT
    (SELECT count(*) FROM orders
      WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq BETWEEN 1 AND $4) AS persisted,
    (SELECT count(DISTINCT seq) FROM dead_letters d
      WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq <= $4
        AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = d.shard AND o.order_id = d.order_id)) AS dead,
    (SELECT count(*) FROM orders WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq > $4)
    + (SELECT count(*) FROM orders WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq < 1) AS later;
