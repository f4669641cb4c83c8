-- list_buyer_orders: a page of the orders of a buyer by shard and id; no other buyer's are looked at.
--
-- Params   $1 shards smallint[]  $2 after: shard  $3 after: order_id  $4 most rows to judge  $5 most orders
--          $6 campaign  $7 channel  $8 buyer_id  $9 state: NULL = any, but of the buyer
-- Returns  order_id, ends: those that fit, in order; and, if more rows may follow, the last one judged (ends = true)
WITH seen AS MATERIALIZED (
    SELECT shard, order_id, campaign, channel, state FROM orders
    WHERE buyer_id = $8::text AND shard = ANY ($1::smallint[]) AND (shard, order_id) > ($2::smallint, $3::uuid)
    ORDER BY shard, order_id LIMIT $4
), fitting AS (
    SELECT shard, order_id, false AS ends FROM seen
    WHERE ($6::text IS NULL OR campaign = $6) AND ($7::text IS NULL OR channel = $7) AND ($9::text IS NULL OR state = $9)
    ORDER BY shard, order_id LIMIT $5
), last AS (
    SELECT shard, order_id, true AS ends FROM seen WHERE (SELECT count(*) FROM seen) = $4
    ORDER BY shard DESC, order_id DESC LIMIT 1
)
SELECT order_id, ends FROM (SELECT * FROM fitting UNION ALL SELECT * FROM last) AS found
ORDER BY ends, shard, order_id;
