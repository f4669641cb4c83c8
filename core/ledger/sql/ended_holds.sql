-- ended_holds: of these orders of one shard, those whose end of hold is on record and whose message has left the outbox.
--
-- Params   $1 shard  $2 order_ids uuid[], 1 to 10,000; then parallel arrays, the moves that end a hold:
--          $3 from_states text[]  $4 actions text[]  $5 topics text[]
-- Returns  order_id, topic, version of the order at that move: the first such move of each
SELECT DISTINCT ON (e.order_id) e.order_id, s.topic, e.version
FROM order_events e
JOIN unnest($3::text[], $4::text[], $5::text[]) AS s (from_state, action, topic)
     ON s.from_state = e.from_state AND s.action = e.action
WHERE e.shard = $1 AND e.order_id = ANY ($2::uuid[])
  AND NOT EXISTS (SELECT FROM outbox m WHERE m.shard = e.shard AND m.order_id = e.order_id AND m.topic = s.topic)
ORDER BY e.order_id, e.version;
