-- audit_units: units per SKU in orders of one campaign and shard, up to an epoch and in it to a sequence number.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq
--          $5 when the store began to be read, the ledger's clock
-- Returns  sku
--          sure    units that the store had taken when it was read: no release was ever due for them
--          unsure  units whose release is due, or was done since then
--          (units released before were left again)
-- No join is left to the planner: with a plan from before the sale has filled the tables it reads one side whole for
-- every row of the other. Orders and what waits in the outbox are read once each and brought together by a GROUP BY;
-- their lines, and what was delivered, which are of all times, by the primary keys, order by order (OFFSET 0, and an
-- aggregate: the planner may not turn that into a join).
WITH mine AS MATERIALIZED (
    SELECT order_id, bool_or(due) AS due
    FROM (
        SELECT order_id, true AS mine, false AS due FROM orders
        WHERE shard = $1 AND campaign = $2 AND (epoch, seq) <= ($3::integer, $4::bigint)
        UNION ALL
        SELECT order_id, false, true FROM outbox WHERE shard = $1 AND topic = 'release'
    ) AS facts
    GROUP BY order_id
    HAVING bool_or(mine)
)
SELECT i.sku,
       coalesce(sum(i.quantity) FILTER (WHERE NOT o.due AND d.done_at IS NULL), 0)::bigint AS sure,
       coalesce(sum(i.quantity) FILTER (WHERE o.due OR d.done_at >= $5), 0)::bigint AS unsure
FROM mine o
CROSS JOIN LATERAL (
    SELECT max(at) AS done_at FROM deliveries WHERE shard = $1 AND order_id = o.order_id AND topic = 'release'
) AS d
CROSS JOIN LATERAL (
    SELECT sku, quantity FROM order_items WHERE shard = $1 AND order_id = o.order_id OFFSET 0
) AS i
GROUP BY i.sku;
