-- drop_messages: dead messages are given up: they go, and nothing of them stays.
--
-- Params   $1 shard, NULL = all  $2 order_id, NULL = all  $3 topic, NULL = all
-- Returns  shard, order_id, version, topic of each
DELETE FROM dead_messages
WHERE ($1::smallint IS NULL OR shard = $1) AND ($2::uuid IS NULL OR order_id = $2) AND ($3::text IS NULL OR topic = $3)
RETURNING shard, order_id, version, topic;
