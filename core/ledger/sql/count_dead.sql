-- count_dead: what nobody could deliver, and what list_dead_letters has. For operators: it spans shards.
--
-- Params   none
-- Returns  messages, orders
SELECT (SELECT count(*) FROM dead_messages) AS messages,
       (SELECT count(*) FROM dead_letters d WHERE dropped_at IS NULL
        AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = d.shard AND o.order_id = d.order_id)) AS orders;
