-- bury_messages: messages of one shard and topic that nobody can deliver leave the outbox for `dead_messages`. Those
-- that another relay has taken meanwhile (their attempts grew) are left to it.
--
-- Params   $1 shard  $2 topic, then parallel arrays, 1 to 1,000 elements: $3 order_ids uuid[]  $4 versions
--          $5 attempts  $6 reasons text[]
-- Returns  nothing
WITH gone AS (
    DELETE FROM outbox m
    USING unnest($3::uuid[], $4::integer[], $5::integer[], $6::text[]) AS d (order_id, version, attempts, reason)
    WHERE m.shard = $1 AND m.order_id = d.order_id AND m.version = d.version AND m.topic = $2
      AND m.attempts = d.attempts
    RETURNING m.order_id, m.version, m.at, m.attempts, d.reason
)
INSERT INTO dead_messages (shard, order_id, version, topic, at, attempts, reason)
SELECT $1, order_id, version, $2, at, attempts, reason FROM gone
ON CONFLICT (shard, order_id, version, topic)
DO UPDATE SET dead_at = now(), attempts = excluded.attempts, reason = excluded.reason;
