-- open_requeues: orders of one campaign and shard that were put back into the intake and are not in the ledger yet: the
-- latest repair of each.
--
-- Params   $1 shard  $2 campaign  $3 most rows
-- Returns  order_id, why (it names the sequence number), age_s
SELECT DISTINCT ON (r.order_id) r.order_id, r.why,
       extract(epoch FROM clock_timestamp() - r.at)::float8 AS age_s
FROM repairs r
WHERE r.shard = $1 AND r.campaign = $2 AND r.what = 'requeued'
  AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = r.shard AND o.order_id = r.order_id)
ORDER BY r.order_id, r.at DESC LIMIT $3;
