-- put_move: journal a change of stock before it is made, once per move id and shard.
--
-- Params   $1 shards smallint[]  $2 campaign  $3 move_ids text[]  $4 skus text[]  $5 kind  $6 units bigint[]
-- Returns  nothing
INSERT INTO stock_moves (shard, campaign, move_id, sku, kind, units, state)
SELECT m.shard, $2, m.move_id, m.sku, $5, m.units, 'pending'
FROM unnest($1::smallint[], $3::text[], $4::text[], $6::bigint[]) AS m (shard, move_id, sku, units)
ON CONFLICT (shard, campaign, move_id) DO NOTHING;
