-- move_orders: make one step of a flow with orders of one shard; who is no longer in the expected state is left alone.
--
-- Guarantee  G17: of two moves out of the same state one happens; event and messages are written with it.
-- Params     $1 shard  $2 order_ids uuid[], 1 to 1,000  $3 from_state  $4 to_state  $5 action  $6 actor  $7 reason
--            $8 topics text[]: the messages of the step  $9 timer_s: after so long time moves them on
--            from the new state; NULL = it does not
--            $10 epoch that the store was asked under, NULL = it was not: nothing is moved if a rebuild began a newer one
-- Returns    order_id, version of each order moved by THIS call.
WITH wanted AS (
    SELECT order_id FROM orders
    WHERE shard = $1 AND order_id = ANY ($2::uuid[]) AND state = $3
      AND NOT EXISTS (SELECT FROM rebuilds r
                      WHERE r.shard = $1 AND r.campaign = orders.campaign AND r.epoch > $10::integer)
    ORDER BY order_id FOR UPDATE
), moved AS (
    UPDATE orders o SET state = $4, version = o.version + 1,
        timer_at = CASE WHEN $9::integer IS NOT NULL THEN clock_timestamp() + make_interval(secs => $9::integer)
                        WHEN $3 = $4 THEN o.timer_at END
    FROM wanted w
    WHERE o.shard = $1 AND o.order_id = w.order_id AND o.state = $3
    RETURNING o.order_id, o.version
), events AS (
    INSERT INTO order_events (shard, order_id, version, at, action, from_state, to_state, actor, reason)
    SELECT $1, order_id, version, clock_timestamp(), $5, $3, $4, $6, $7 FROM moved
), messages AS (
    INSERT INTO outbox (shard, order_id, version, topic, at)
    SELECT $1, m.order_id, m.version, t.topic, clock_timestamp()
    FROM moved m CROSS JOIN unnest($8::text[]) AS t (topic)
)
SELECT order_id, version FROM moved;
