-- audit_limits: who has taken more units than a limit allows, on one shard. Orders whose units go back, or went, do not
-- count.
--
-- Params   $1 shard  $2 campaign  $3 buyer  $4 buyer_sku  $5 ip  $6 device: limits in units, NULL = none
--          $7 channels text[]  $8 units bigint[]: parallel, what each may sell on this shard
-- Returns  kind, who, units; 100 rows at most
-- No join is left to the planner, as in audit_units.
WITH mine AS MATERIALIZED (
    SELECT order_id, max(channel) AS channel, max(buyer_id) AS buyer_id, max(client_ip) AS client_ip,
           max(device_id) AS device_id
    FROM (
        SELECT order_id, channel, buyer_id, client_ip, device_id, true AS mine, false AS back FROM orders
        WHERE shard = $1 AND campaign = $2
        UNION ALL
        SELECT order_id, NULL, NULL, NULL, NULL, false, true FROM outbox
        WHERE shard = $1 AND topic IN ('release', 'restock')
    ) AS facts
    GROUP BY order_id
    HAVING bool_or(mine) AND NOT bool_or(back)
), taken AS MATERIALIZED (
    SELECT o.channel, o.buyer_id, o.client_ip, o.device_id, i.sku, i.quantity
    FROM mine o
    CROSS JOIN LATERAL (
        SELECT count(*) AS times FROM deliveries
        WHERE shard = $1 AND order_id = o.order_id AND topic IN ('release', 'restock')
    ) AS back
    CROSS JOIN LATERAL (
        SELECT sku, quantity FROM order_items WHERE shard = $1 AND order_id = o.order_id OFFSET 0
    ) AS i
    WHERE back.times = 0
)
SELECT kind, who, units FROM (
    SELECT 'buyer' AS kind, buyer_id AS who, sum(quantity)::bigint AS units, $3::bigint AS most
    FROM taken WHERE $3::bigint IS NOT NULL GROUP BY buyer_id
    UNION ALL
    SELECT 'buyer_sku', buyer_id || ' ' || sku, sum(quantity)::bigint, $4::bigint
    FROM taken WHERE $4::bigint IS NOT NULL GROUP BY buyer_id, sku
    UNION ALL
    SELECT 'ip', client_ip, sum(quantity)::bigint, $5::bigint
    FROM taken WHERE client_ip <> '' AND $5::bigint IS NOT NULL GROUP BY client_ip
    UNION ALL
    SELECT 'device', device_id, sum(quantity)::bigint, $6::bigint
    FROM taken WHERE device_id <> '' AND $6::bigint IS NOT NULL GROUP BY device_id
    UNION ALL
    SELECT 'channel_share', t.channel, sum(t.quantity)::bigint, s.units
    FROM taken t JOIN unnest($7::text[], $8::bigint[]) AS s (channel, units) ON s.channel = t.channel
    GROUP BY t.channel, s.units
) AS counted
WHERE units > most
ORDER BY kind, who
LIMIT 100;
