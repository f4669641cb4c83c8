-- audit_limits: who has taken more units than a limit allows, on one shard.
--
-- Params   $1 shard  $2 campaign  $3 buyer  $4 buyer_sku  $5 ip  $6 device: limits in units, NULL = none
-- Returns  kind, who, units; 100 rows at most
SELECT kind, who, units FROM (
    SELECT 'buyer' AS kind, o.buyer_id AS who, sum(i.quantity)::bigint AS units, $3::bigint AS most
    FROM orders o JOIN order_items i USING (shard, order_id)
    WHERE o.shard = $1 AND o.campaign = $2 AND $3::bigint IS NOT NULL GROUP BY o.buyer_id
    UNION ALL
    SELECT 'buyer_sku', o.buyer_id || ' ' || i.sku, sum(i.quantity)::bigint, $4::bigint
    FROM orders o JOIN order_items i USING (shard, order_id)
    WHERE o.shard = $1 AND o.campaign = $2 AND $4::bigint IS NOT NULL GROUP BY o.buyer_id, i.sku
    UNION ALL
    SELECT 'ip', o.client_ip, sum(i.quantity)::bigint, $5::bigint
    FROM orders o JOIN order_items i USING (shard, order_id)
    WHERE o.shard = $1 AND o.campaign = $2 AND o.client_ip <> '' AND $5::bigint IS NOT NULL GROUP BY o.client_ip
    UNION ALL
    SELECT 'device', o.device_id, sum(i.quantity)::bigint, $6::bigint
    FROM orders o JOIN order_items i USING (shard, order_id)
    WHERE o.shard = $1 AND o.campaign = $2 AND o.device_id <> '' AND $6::bigint IS NOT NULL GROUP BY o.device_id
) AS counted
WHERE units > most
ORDER BY kind, who
LIMIT 100;
