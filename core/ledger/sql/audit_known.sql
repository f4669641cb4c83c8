-- audit_known: which of these orders the ledger has, as orders or dead letters.
--
-- Params   $1 shard  $2 order_ids uuid[]
-- Returns  order_id
SELECT order_id FROM orders WHERE shard = $1 AND order_id = ANY ($2)
UNION
SELECT order_id FROM dead_letters WHERE shard = $1 AND order_id = ANY ($2);
