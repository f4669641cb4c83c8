-- message_facts: what messages to partners are made of: the order as it is now, the event and the refund of a version.
--
-- Params   $1 shard, then parallel arrays, 1 to 1,000 elements: $2 order_ids uuid[]  $3 versions
-- Returns  order_id, version, channel, buyer_id, amount, currency, pay_by, ship_to and items (JSON text), of the event
--          at, to_state, action, reason, and of the refund refund_no, refund_amount, refund_currency (NULL = none),
--          traceparent (NULL = the order has no trace of its own)
SELECT w.order_id, w.version, o.channel, o.buyer_id, o.amount, o.currency, o.pay_by, o.ship_to::text AS ship_to,
       (SELECT json_agg(json_build_object('sku', i.sku, 'quantity', i.quantity, 'price', i.price) ORDER BY i.line)::text
        FROM order_items i WHERE i.shard = $1 AND i.order_id = w.order_id) AS items,
       e.at, e.to_state, e.action, e.reason,
       r.refund_no, r.amount AS refund_amount, r.currency AS refund_currency, t.traceparent
FROM unnest($2::uuid[], $3::integer[]) AS w (order_id, version)
JOIN orders o ON o.shard = $1 AND o.order_id = w.order_id
JOIN order_events e ON e.shard = $1 AND e.order_id = w.order_id AND e.version = w.version
LEFT JOIN refunds r ON r.shard = $1 AND r.order_id = w.order_id AND r.refund_no = 'ref_' || w.version
                   AND r.state IN ('approved', 'done')
LEFT JOIN order_traces t ON t.shard = $1 AND t.order_id = w.order_id;
