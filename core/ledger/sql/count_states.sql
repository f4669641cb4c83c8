-- count_states: how many orders of a campaign are in each state. Read only, so it may span shards.
--
-- Params   $1 shards smallint[]: the campaign's  $2 campaign
-- Returns  state, orders, moves = of all of them since they began: two counts with the same sum saw nothing between
SELECT state, count(*) AS orders, sum(version)::bigint AS moves
FROM orders WHERE shard = ANY($1::smallint[]) AND campaign = $2
GROUP BY state;
