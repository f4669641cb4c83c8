-- get_moves: the journalled changes of stock of a campaign on its shards.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  shard, move_id, sku, kind, units, state
SELECT shard, move_id, sku, kind, units, state FROM stock_moves WHERE shard = ANY ($1) AND campaign = $2
ORDER BY shard, move_id;
