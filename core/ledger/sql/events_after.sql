-- events_after: the events of an order after one that is known.
--
-- Params   $1 shard  $2 order_id  $3 version, 0 = all
-- Returns  version, at, action, from_state, to_state, actor, reason; the oldest first
SELECT version, at, action, from_state, to_state, actor, reason FROM order_events
WHERE shard = $1 AND order_id = $2 AND version > $3 ORDER BY version;
