-- rebuild_orders: a page of a campaign's orders on a shard, with what their hold was made of and how it ended.
--
-- Params   $1 shard  $2 campaign  $3 after: epoch  $4 after: seq  $5 most orders; then parallel arrays, the moves that
--          end a hold: $6 from_states text[]  $7 actions text[]  $8 topics text[]
-- Returns  epoch, seq, order_id, channel, request_key, buyer_id, client_ip, device_id, amount, currency, accepted_ms,
--          pay_by_ms, ship_to as first sent (JSON text or NULL), skus, quantities, prices by line, ended = the topic of
--          the move that ended its hold (NULL = it stands); by epoch and seq
SELECT o.epoch, o.seq, o.order_id, o.channel, o.request_key, o.buyer_id, o.client_ip, o.device_id, o.amount, o.currency,
       round(extract(epoch FROM o.accepted_at) * 1000)::bigint AS accepted_ms,
       round(extract(epoch FROM o.pay_by) * 1000)::bigint AS pay_by_ms,
       coalesce(o.first_ship_to, o.ship_to)::text AS ship_to, i.skus, i.quantities, i.prices,
       (SELECT s.topic FROM order_events e
        JOIN unnest($6::text[], $7::text[], $8::text[]) AS s (from_state, action, topic)
             ON s.from_state = e.from_state AND s.action = e.action
        WHERE e.shard = o.shard AND e.order_id = o.order_id ORDER BY e.version LIMIT 1) AS ended
FROM orders o
CROSS JOIN LATERAL (
    SELECT array_agg(sku ORDER BY line) AS skus, array_agg(quantity ORDER BY line) AS quantities,
           array_agg(price ORDER BY line) AS prices
    FROM order_items WHERE shard = o.shard AND order_id = o.order_id
) AS i
WHERE o.shard = $1 AND o.campaign = $2 AND (o.epoch, o.seq) > ($3::integer, $4::bigint)
ORDER BY o.epoch, o.seq LIMIT $5;
