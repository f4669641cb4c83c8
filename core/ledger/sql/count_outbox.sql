-- count_outbox: how the messages that wait stand. For operators: it spans shards.
--
-- Params   $1 shard, NULL = all  $2 order_id, NULL = all  $3 topic, NULL = all
-- Returns  due = now; taken = a relay has them, or gave them back untried until its breaker lets it try again
SELECT count(*) FILTER (WHERE due_at <= now()) AS due,
       count(*) FILTER (WHERE due_at > now() AND error IS NULL) AS taken
FROM outbox
WHERE ($1::smallint IS NULL OR shard = $1) AND ($2::uuid IS NULL OR order_id = $2) AND ($3::text IS NULL OR topic = $3);
