-- ordered_units: the units of a campaign's orders by the state that these are in. Read only, so it may span shards.
--
-- Params   $1 shards smallint[]: the campaign's  $2 campaign
-- Returns  state, units
SELECT o.state, sum(i.quantity)::bigint AS units
FROM orders o JOIN order_items i USING (shard, order_id)
WHERE o.shard = ANY($1::smallint[]) AND o.campaign = $2
GROUP BY o.state;
