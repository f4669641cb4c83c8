-- list_dead_messages: messages that nobody could deliver, the oldest first. For operators: it spans shards.
--
-- Params   $1 shard, NULL = all  $2 order_id, NULL = all  $3 topic, NULL = all  $4 most rows
-- Returns  shard, order_id, version, topic, at, dead_at, attempts, reason
SELECT shard, order_id, version, topic, at, dead_at, attempts, reason FROM dead_messages
WHERE ($1::smallint IS NULL OR shard = $1) AND ($2::uuid IS NULL OR order_id = $2) AND ($3::text IS NULL OR topic = $3)
ORDER BY dead_at, order_id, version, topic LIMIT $4;
