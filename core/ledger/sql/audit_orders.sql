-- audit_orders: what the ledger has of one campaign, epoch and shard up to a sequence number.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq: orders accepted at the store's reading
-- Returns  persisted  orders up to seq
--          dead       dead letters up to seq
--          later      orders beyond seq, or before the first
SELECT
    (SELECT count(*) FROM orders
      WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq BETWEEN 1 AND $4) AS persisted,
    (SELECT count(DISTINCT seq) FROM dead_letters
      WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq <= $4) AS dead,
    (SELECT count(*) FROM orders WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq > $4)
    + (SELECT count(*) FROM orders WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq < 1) AS later;
