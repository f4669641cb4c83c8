-- order_repairs: what the reconcile worker did with the hold of one order, the oldest first.
--
-- Params   $1 shard  $2 order_id
-- Returns  at, what, why
SELECT at, what, why FROM repairs WHERE shard = $1 AND order_id = $2 ORDER BY at, what;
