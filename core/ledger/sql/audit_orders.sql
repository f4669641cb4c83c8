-- audit_orders: what the ledger has of one campaign and shard, up to a sequence number of its epoch. Numbers up to `base`
-- are of earlier epochs: what the store lost of them is the gap that its rebuild reported.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq: orders accepted at the store's reading  $5 base: 0 = never rebuilt
-- Returns  persisted  orders up to seq
--          dead       dead letters up to seq, but for those whose order is in the ledger after all
--          known      orders and dead letters up to base, of those above
--          later      orders beyond seq, before the first, or of an earlier epoch beyond base
SELECT
    (SELECT count(*) FROM orders
      WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq > $5 AND seq BETWEEN 1 AND $4) + b.orders AS persisted,
    (SELECT count(DISTINCT seq) FROM dead_letters d
      WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq > $5 AND seq <= $4
        AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = d.shard AND o.order_id = d.order_id)) + b.letters AS dead,
    b.orders + b.letters AS known,
    (SELECT count(*) FROM orders WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq > $4)
    + (SELECT count(*) FROM orders WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq < 1)
    + (SELECT count(*) FROM orders WHERE shard = $1 AND campaign = $2 AND epoch < $3 AND seq > $5) AS later
FROM (
    SELECT
        (SELECT count(*) FROM orders
          WHERE $5::bigint > 0 AND shard = $1 AND campaign = $2 AND seq BETWEEN 1 AND $5) AS orders,
        (SELECT count(DISTINCT l.seq) FROM dead_letters l
          WHERE $5::bigint > 0 AND l.shard = $1 AND l.campaign = $2 AND l.seq BETWEEN 1 AND $5
            AND NOT EXISTS (SELECT FROM orders o
                            WHERE o.shard = $1 AND o.campaign = $2 AND o.epoch <= $3 AND o.seq = l.seq)) AS letters
) AS b;
