-- find_request: the orders of a request key, one look-up by the unique key for each place and channel. For operators: it
-- spans shards.
--
-- Params   $1 shards smallint[], $2 campaigns text[]: parallel, where to look  $3 channels text[]  $4 request_key
--          $5 most rows
-- Returns  order_id
SELECT found.order_id
FROM unnest($1::smallint[], $2::text[]) AS place (shard, campaign) CROSS JOIN unnest($3::text[]) AS c (channel)
CROSS JOIN LATERAL (
    SELECT o.order_id FROM orders o
    WHERE o.shard = place.shard AND o.campaign = place.campaign AND o.channel = c.channel AND o.request_key = $4
) AS found
LIMIT $5;
