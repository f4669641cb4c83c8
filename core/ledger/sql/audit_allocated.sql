-- audit_allocated: as audit_units, of a campaign whose orders take their units when they are paid (order type
-- reserve_at_payment). The script takes the units before the order's step `allocated`.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq
--          $5 when the store began to be read, the ledger's clock
-- Returns  sku
--          sure    units that the store had taken when it was read: their step had been made before
--          unsure  units that it may have been about to take, or to give back: of orders that are being allocated, or
--                  were then, and of those that were called too late while another relay got units for them
-- No join is left to the planner, as in audit_units.
WITH mine AS MATERIALIZED (
    SELECT order_id, bool_or(allocating) AS allocating, bool_or(due) AS due
    FROM (
        SELECT order_id, true AS mine, state = 'allocating' AS allocating, false AS due
        FROM orders
        WHERE shard = $1 AND campaign = $2 AND (epoch, seq) <= ($3::integer, $4::bigint)
        UNION ALL
        SELECT order_id, false, false, true FROM outbox WHERE shard = $1 AND topic = 'release'
    ) AS facts
    GROUP BY order_id
    HAVING bool_or(mine)
)
SELECT i.sku,
       coalesce(sum(i.quantity) FILTER (WHERE e.action = 'allocated' AND e.at < $5), 0)::bigint AS sure,
       coalesce(sum(i.quantity) FILTER (WHERE
           o.allocating OR (e.action = 'allocated' AND e.at >= $5)
           OR (e.action = 'too_late' AND (o.due OR d.done_at >= $5))), 0)::bigint AS unsure
FROM mine o
CROSS JOIN LATERAL (
    SELECT max(at) AS done_at FROM deliveries WHERE shard = $1 AND order_id = o.order_id AND topic = 'release'
) AS d
CROSS JOIN LATERAL (
    SELECT sku, quantity FROM order_items WHERE shard = $1 AND order_id = o.order_id OFFSET 0
) AS i
LEFT JOIN LATERAL (
    SELECT action, at FROM order_events
    WHERE shard = $1 AND order_id = o.order_id AND action IN ('allocated', 'too_late') OFFSET 0
) AS e ON true
GROUP BY i.sku;
