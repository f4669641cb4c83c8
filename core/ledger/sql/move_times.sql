-- move_times: how long after their acceptance the orders of a campaign came to each state. Read only, so it may span
-- shards.
--
-- Params   $1 shards smallint[]: the campaign's  $2 campaign
-- Returns  state, moves, after_s = {p50, p99} from accepted_at, late_s = {p50, p99} from pay_by; seconds, interpolated
SELECT e.to_state AS state, count(*) AS moves,
       percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
           ORDER BY extract(epoch FROM e.at - o.accepted_at)::float8) AS after_s,
       percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
           ORDER BY extract(epoch FROM e.at - o.pay_by)::float8) AS late_s
FROM orders o JOIN order_events e USING (shard, order_id)
WHERE o.shard = ANY($1::smallint[]) AND o.campaign = $2 AND e.from_state <> e.to_state
GROUP BY e.to_state;
