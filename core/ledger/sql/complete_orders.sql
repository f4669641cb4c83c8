-- complete_orders: received orders whose after-sales window is over are completed, a bounded batch at a time.
--
-- Guarantee  G17: of two moves out of the same state one happens. Rows that somebody else works on are passed over,
--            so several expiry workers share a shard. No order is completed while a refund of it is under review:
--            whoever asks for one changes the order's version first, in the same transaction. `due` locks the newest
--            version of a row, but looks for reviews as of the statement's beginning; `moved` finds the version of
--            that beginning. Only where the two agree nothing can have been asked for in between.
-- Params     $1 shard  $2 most orders, 1 to 1,000  $3 to_state  $4 action  $5 actor  $6 reason  $7 topics text[]
-- Returns    how many were completed, how late the latest of them was in seconds, and of those whose
--            traces are recorded the ids (NULL = none) and, in their order, the traces.
WITH due AS (
    SELECT o.order_id, o.version, o.timer_at FROM orders o
    WHERE o.shard = $1 AND o.state = 'received' AND o.timer_at <= now()
          AND NOT EXISTS (SELECT FROM refunds r
                          WHERE r.shard = $1 AND r.order_id = o.order_id AND r.state = 'requested'
                          OFFSET 0) -- by key, order after order: a join with all reviews of the shard would be slow
    ORDER BY o.timer_at LIMIT $2 FOR UPDATE OF o SKIP LOCKED
), moved AS (
    UPDATE orders o SET state = $3, version = o.version + 1, timer_at = NULL
    FROM due d
    WHERE o.shard = $1 AND o.order_id = ANY (ARRAY(SELECT order_id FROM due)) -- by key, whatever the planner believes
          AND o.order_id = d.order_id AND o.version = d.version AND o.state = 'received'
    RETURNING o.order_id, o.version, d.timer_at
), events AS (
    INSERT INTO order_events (shard, order_id, version, at, action, from_state, to_state, actor, reason)
    SELECT $1, order_id, version, clock_timestamp(), $4, 'received', $3, $5, $6 FROM moved
), messages AS (
    INSERT INTO outbox (shard, order_id, version, topic, at)
    SELECT $1, m.order_id, m.version, t.topic, clock_timestamp()
    FROM moved m CROSS JOIN unnest($7::text[]) AS t (topic)
), traces AS (
    SELECT m.order_id, (SELECT t.traceparent FROM order_traces t WHERE t.shard = $1 AND t.order_id = m.order_id) AS trace
    FROM moved m
)
SELECT count(*) AS moved, coalesce(extract(epoch FROM clock_timestamp() - min(timer_at)), 0)::float8 AS late_s,
       (SELECT array_agg(order_id ORDER BY order_id) FROM traces WHERE trace LIKE '%-01') AS traced,
       (SELECT array_agg(trace ORDER BY order_id) FROM traces WHERE trace LIKE '%-01') AS traces
FROM moved;
