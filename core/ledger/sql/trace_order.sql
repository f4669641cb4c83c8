-- trace_order: every step of an order, moves and deliveries together, in the order of their happening.
--
-- Params   $1 shard  $2 order_id
-- Returns  at, kind (move or delivery), action or topic, from_state, to_state, actor, reason or outcome, waited_ms
--          (a move: since the one before), worked_ms, attempts, version
SELECT at, 'move' AS kind, action AS what, from_state, to_state, actor, reason,
       coalesce((extract(epoch FROM at - lag(at) OVER (ORDER BY version)) * 1000)::bigint, 0) AS waited_ms,
       0::bigint AS worked_ms, 1 AS attempts, version
FROM order_events WHERE shard = $1 AND order_id = $2
UNION ALL
SELECT at, 'delivery', topic, NULL, NULL, 'relay', outcome, waited_ms, worked_ms, attempts, version
FROM deliveries WHERE shard = $1 AND order_id = $2
ORDER BY at, version;
