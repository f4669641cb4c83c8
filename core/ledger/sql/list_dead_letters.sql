-- list_dead_letters: orders that the ledger could not take and nobody gave up, the oldest first. Not those that came into
-- the ledger after all, by a replay that broke off behind its work. For operators: it spans shards.
--
-- Params   $1 shard, NULL = all  $2 order_id, NULL = all  $3 most rows
-- Returns  shard, entry_id, place, campaign, epoch, seq, order_id, at, reason, payload
SELECT shard, entry_id, place, campaign, epoch, seq, order_id, at, reason, payload FROM dead_letters d
WHERE dropped_at IS NULL AND ($1::smallint IS NULL OR shard = $1) AND ($2::uuid IS NULL OR order_id = $2)
      AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = d.shard AND o.order_id = d.order_id)
ORDER BY at, shard, entry_id, place LIMIT $3;
