-- audit_allocated: as audit_units, of a campaign whose orders take their units when they are paid (order type
-- reserve_at_payment). The script takes the units before the order's step `allocated`.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq
--          $5 when the store began to be read, the ledger's clock
-- Returns  sku
--          sure    units that the store had taken when it was read: their step had been made before
--          unsure  units that it may have been about to take, or to give back: of orders that are being allocated, or
--                  were then, and of those that were called too late while another relay got units for them
SELECT i.sku,
       coalesce(sum(i.quantity) FILTER (WHERE e.action = 'allocated' AND e.at < $5), 0)::bigint AS sure,
       coalesce(sum(i.quantity) FILTER (WHERE
           o.state = 'allocating' OR (e.action = 'allocated' AND e.at >= $5)
           OR (e.action = 'too_late' AND (m.order_id IS NOT NULL OR d.at >= $5))), 0)::bigint AS unsure
FROM orders o
JOIN order_items i ON i.shard = o.shard AND i.order_id = o.order_id
LEFT JOIN order_events e ON e.shard = o.shard AND e.order_id = o.order_id AND e.action IN ('allocated', 'too_late')
LEFT JOIN outbox m ON m.shard = o.shard AND m.order_id = o.order_id AND m.topic = 'release'
LEFT JOIN deliveries d ON d.shard = o.shard AND d.order_id = o.order_id AND d.topic = 'release'
WHERE o.shard = $1 AND o.campaign = $2 AND (o.epoch, o.seq) <= ($3::integer, $4::bigint)
GROUP BY i.sku;
