-- find_orders: orders with their lines, by id; one query for all pollers of a tick.
--
-- Params   $1 shards smallint[], $2 order_ids uuid[]: parallel, 1 to 1,000 elements
-- Returns  a row per line, the lines of an order together and in their order; ship_to: JSON text or NULL
SELECT o.order_id, o.campaign, o.channel, o.buyer_id, o.state, o.version, o.amount, o.currency, o.accepted_at,
       o.pay_by, o.ship_to::text AS ship_to, i.sku, i.quantity, i.price
FROM unnest($1::smallint[], $2::uuid[]) AS w (shard, order_id)
JOIN orders o ON o.shard = w.shard AND o.order_id = w.order_id
JOIN order_items i ON i.shard = o.shard AND i.order_id = o.order_id
ORDER BY o.order_id, i.line;
