-- check_repairs: what the reconcile worker mended in a campaign, for the history checker.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  order_id, what
SELECT order_id, what FROM repairs WHERE shard = ANY ($1::smallint[]) AND campaign = $2;
