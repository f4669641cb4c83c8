-- due_shards: the shards with orders whose time to pay has passed, whose receipt nobody confirmed in time, or whose
-- after-sales window is over while no refund is under review. Read only, so it may span shards. The first of each index is asked for: as EXISTS the planner would
-- rather read the table, which it believes to be full of what is due.
--
-- Params   $1 shards smallint[]
-- Returns  shard, expire, receive, complete: whether that is due there, true or NULL; shards without any are left out.
SELECT s.shard, e.due AS expire, r.due AS receive, c.due AS complete
FROM unnest($1::smallint[]) AS s (shard)
LEFT JOIN LATERAL (
    SELECT true AS due FROM orders o
    WHERE o.shard = s.shard AND o.state = 'accepted' AND o.pay_by <= now()
    ORDER BY o.pay_by LIMIT 1
) AS e ON true
LEFT JOIN LATERAL (
    SELECT true AS due FROM orders o
    WHERE o.shard = s.shard AND o.state = 'shipped' AND o.timer_at <= now()
    ORDER BY o.timer_at LIMIT 1
) AS r ON true
LEFT JOIN LATERAL (
    SELECT true AS due FROM orders o
    WHERE o.shard = s.shard AND o.state = 'received' AND o.timer_at <= now()
          AND NOT EXISTS (SELECT FROM refunds r
                          WHERE r.shard = s.shard AND r.order_id = o.order_id AND r.state = 'requested'
                          OFFSET 0) -- as in complete_orders
    ORDER BY o.timer_at LIMIT 1
) AS c ON true
WHERE e.due OR r.due OR c.due;
