-- check_events: all events of a campaign's orders, for the history checker.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  order_id, version, at, action, from_state, to_state, actor, reason; by order and version
SELECT e.order_id, e.version, e.at, e.action, e.from_state, e.to_state, e.actor, e.reason
FROM order_events e JOIN orders o USING (shard, order_id)
WHERE o.shard = ANY ($1::smallint[]) AND o.campaign = $2
ORDER BY e.order_id, e.version;
