-- rebuild_letters: the orders of a campaign on a shard that the ledger could not take.
--
-- Params   $1 shard  $2 campaign
-- Returns  seq, order_id, entry_id, reason, payload, dropped = given up by an operator; the oldest first
SELECT seq, order_id, entry_id, reason, payload, dropped_at IS NOT NULL AS dropped FROM dead_letters l
WHERE shard = $1 AND campaign = $2 AND seq IS NOT NULL AND order_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = l.shard AND o.order_id = l.order_id)
ORDER BY at, entry_id, place;
