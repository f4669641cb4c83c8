-- 0007 post: orders that were shipped or received before 0005 get the time at which time moves them on: campaigns of then
-- have the windows of a definition that says nothing, 15 and 7 days.
-- Lock  rows of shipped and received orders.
-- Undo  none needed.
UPDATE orders o
SET timer_at = e.at + CASE o.state WHEN 'shipped' THEN interval '15 days' ELSE interval '7 days' END
FROM (SELECT shard, order_id, max(at) AS at FROM order_events
      WHERE to_state IN ('shipped', 'received') AND from_state <> to_state GROUP BY shard, order_id) AS e
WHERE o.shard = e.shard AND o.order_id = e.order_id AND o.state IN ('shipped', 'received') AND o.timer_at IS NULL;
