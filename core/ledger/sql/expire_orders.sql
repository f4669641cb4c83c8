-- expire_orders: orders of one shard whose time to pay has passed are expired, a bounded batch at a time.
--
-- Guarantee  G17: of two moves out of the same state one happens. Rows that somebody else works on are passed over,
--            so several expiry workers share a shard.
-- Params     $1 shard  $2 most orders, 1 to 1,000  $3 to_state  $4 action  $5 actor  $6 reason  $7 topics text[]
-- Returns    how many were expired, how late the latest of them was in seconds, and of those whose
--            traces are recorded the ids (NULL = none) and, in their order, the traces.
WITH due AS (
    SELECT order_id FROM orders
    WHERE shard = $1 AND state = 'accepted' AND pay_by <= now()
    ORDER BY pay_by LIMIT $2 FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE orders o SET state = $3, version = o.version + 1
    FROM due d
    WHERE o.shard = $1 AND o.order_id = ANY (ARRAY(SELECT order_id FROM due)) -- by key, whatever the planner believes
          AND o.order_id = d.order_id AND o.state = 'accepted'
    RETURNING o.order_id, o.version, o.pay_by
), events AS (
    INSERT INTO order_events (shard, order_id, version, at, action, from_state, to_state, actor, reason)
    SELECT $1, order_id, version, clock_timestamp(), $4, 'accepted', $3, $5, $6 FROM moved
), messages AS (
    INSERT INTO outbox (shard, order_id, version, topic, at)
    SELECT $1, m.order_id, m.version, t.topic, clock_timestamp()
    FROM moved m CROSS JOIN unnest($7::text[]) AS t (topic)
), traces AS (
    SELECT m.order_id, (SELECT t.traceparent FROM order_traces t WHERE t.shard = $1 AND t.order_id = m.order_id) AS trace
    FROM moved m
)
SELECT count(*) AS moved, coalesce(extract(epoch FROM clock_timestamp() - min(pay_by)), 0)::float8 AS late_s,
       (SELECT array_agg(order_id ORDER BY order_id) FROM traces WHERE trace LIKE '%-01') AS traced,
       (SELECT array_agg(trace ORDER BY order_id) FROM traces WHERE trace LIKE '%-01') AS traces
FROM moved;
