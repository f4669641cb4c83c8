-- lost_messages: messages for the store that nobody will deliver: written with a move of an order of one campaign, epoch
-- and shard, and now neither in the outbox nor delivered. A dead message is one of them.
--
-- An order in want of `allocate` is in `allocating`, and a move that writes `restock` leads to `refund_pending`; the
-- index orders_waiting has no others.
--
-- Params   $1 shard  $2 campaign  $3 epoch; then parallel arrays, the moves that write such messages:
--          $4 from_states text[]  $5 actions text[]  $6 topics text[];  $7 most rows
-- Returns  order_id, topic, version of the order at that move; those of the oldest orders
SELECT o.order_id, s.topic, e.version
FROM orders o
JOIN order_events e ON e.shard = o.shard AND e.order_id = o.order_id
JOIN unnest($4::text[], $5::text[], $6::text[]) AS s (from_state, action, topic)
     ON s.from_state = e.from_state AND s.action = e.action
WHERE o.shard = $1 AND o.campaign = $2 AND o.epoch <= $3 AND o.state IN ('allocating', 'refund_pending', 'refunded')
  AND (s.topic <> 'allocate' OR o.state = 'allocating')
  AND NOT EXISTS (SELECT FROM outbox m WHERE m.shard = e.shard AND m.order_id = e.order_id
                                         AND m.version = e.version AND m.topic = s.topic)
  AND NOT EXISTS (SELECT FROM deliveries d WHERE d.shard = e.shard AND d.order_id = e.order_id
                                             AND d.version = e.version AND d.topic = s.topic)
ORDER BY o.order_id, e.version LIMIT $7;
