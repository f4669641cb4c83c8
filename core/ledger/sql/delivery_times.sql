-- delivery_times: how long after the acceptance of its order each message of a campaign was delivered. Read only, so it
-- may span shards.
--
-- Params   $1 shards smallint[]: the campaign's  $2 campaign
-- Returns  topic, messages, after_s = {p50, p99} from accepted_at in seconds, interpolated
SELECT d.topic, count(*) AS messages,
       percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
           ORDER BY extract(epoch FROM d.at - o.accepted_at)::float8) AS after_s
FROM orders o JOIN deliveries d USING (shard, order_id)
WHERE o.shard = ANY($1::smallint[]) AND o.campaign = $2
GROUP BY d.topic;
