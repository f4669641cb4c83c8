-- due_receipts: shipped orders of one shard whose receipt nobody confirmed in time, the longest overdue first.
--
-- Params   $1 shard  $2 most orders
-- Returns  order_id
SELECT order_id FROM orders WHERE shard = $1 AND state = 'shipped' AND timer_at <= now() ORDER BY timer_at LIMIT $2;
