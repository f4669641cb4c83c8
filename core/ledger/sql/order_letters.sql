-- order_letters: how an order was set aside, if it was: the newest first.
--
-- Params   $1 shard  $2 order_id
-- Returns  at, reason, dropped_at
SELECT at, reason, dropped_at FROM dead_letters WHERE shard = $1 AND order_id = $2 ORDER BY at DESC LIMIT 1;
