-- replay_messages: dead messages are in the outbox again, due now, with all their attempts before them.
--
-- Params   $1 shard, NULL = all  $2 order_id, NULL = all  $3 topic, NULL = all
-- Returns  shard, order_id, version, topic of each
WITH back AS (
    DELETE FROM dead_messages
    WHERE ($1::smallint IS NULL OR shard = $1) AND ($2::uuid IS NULL OR order_id = $2)
      AND ($3::text IS NULL OR topic = $3)
    RETURNING shard, order_id, version, topic, at
), outbox AS (
    INSERT INTO outbox (shard, order_id, version, topic, at)
    SELECT shard, order_id, version, topic, at FROM back
    ON CONFLICT (shard, order_id, version, topic) DO NOTHING
)
SELECT shard, order_id, version, topic FROM back ORDER BY shard, order_id, version, topic;
