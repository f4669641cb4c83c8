-- check_moves: the journalled changes of a campaign's stock with their times, for the history checker.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  move_id, sku, kind, units, state, at
SELECT move_id, sku, kind, units, state, at
FROM stock_moves WHERE shard = ANY ($1::smallint[]) AND campaign = $2;
