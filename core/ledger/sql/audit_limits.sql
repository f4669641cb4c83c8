-- audit_limits: who has taken more units than a limit allows, on one shard. Orders whose units go back, or went, do not
-- count.
--
-- Params   $1 shard  $2 campaign  $3 buyer  $4 buyer_sku  $5 ip  $6 device: limits in units, NULL = none
--          $7 channels text[]  $8 units bigint[]: parallel, what each may sell on this shard
-- Returns  kind, who, units; 100 rows at most
WITH taken AS (
    SELECT o.channel, o.buyer_id, o.client_ip, o.device_id, i.sku, i.quantity
    FROM orders o JOIN order_items i ON i.shard = o.shard AND i.order_id = o.order_id
    WHERE o.shard = $1 AND o.campaign = $2
      AND NOT EXISTS (SELECT FROM outbox m
                      WHERE m.shard = o.shard AND m.order_id = o.order_id AND m.topic IN ('release', 'restock'))
      AND NOT EXISTS (SELECT FROM deliveries d
                      WHERE d.shard = o.shard AND d.order_id = o.order_id AND d.topic IN ('release', 'restock'))
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
