-- hasten_outbox: messages that wait for their next attempt are due now, with all their attempts before them.
--
-- Params   $1 shard, NULL = all  $2 order_id, NULL = all  $3 topic, NULL = all
-- Returns  shard, order_id, version, topic of each
UPDATE outbox SET due_at = now(), attempts = 0
WHERE ($1::smallint IS NULL OR shard = $1) AND ($2::uuid IS NULL OR order_id = $2) AND ($3::text IS NULL OR topic = $3)
  AND due_at > now() AND error IS NOT NULL
RETURNING shard, order_id, version, topic;
