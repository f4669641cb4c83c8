-- last_event: the latest event of an action of an order.
--
-- Params   $1 shard  $2 order_id  $3 action
-- Returns  version, age_s; or no row
SELECT version, extract(epoch FROM clock_timestamp() - at)::float8 AS age_s FROM order_events
WHERE shard = $1 AND order_id = $2 AND action = $3 ORDER BY version DESC LIMIT 1;
