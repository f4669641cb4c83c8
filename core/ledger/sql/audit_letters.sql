-- audit_letters: what orders of one campaign, epoch and shard up to a sequence number may hold that were set aside and are
-- not in the ledger. One that was given up holds nothing: its hold was released right behind that, within $6.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq
--          $5 when the store began to be read, the ledger's clock  $6 seconds  $7 most rows
-- Returns  seq, payload: one row an order
SELECT DISTINCT ON (d.seq) d.seq, d.payload FROM dead_letters d
WHERE d.shard = $1 AND d.campaign = $2 AND d.epoch <= $3 AND d.seq <= $4
  AND (d.dropped_at IS NULL OR d.dropped_at > $5::timestamptz - make_interval(secs => $6))
  AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = d.shard AND o.order_id = d.order_id)
ORDER BY d.seq LIMIT $7;
