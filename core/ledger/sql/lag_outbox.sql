-- lag_outbox: what is due in the outbox and waits for a relay, by topic. Read only, so it may span shards.
--
-- Params   $1 shards smallint[]  $2 topics text[]  $3 most messages that are counted, of one topic on one shard
-- Returns  topic, waiting = messages that are due, overdue_s = since when the first of them is; topics without any are
--          left out.
SELECT t.topic, sum(d.waiting)::bigint AS waiting,
       greatest(0, extract(epoch FROM clock_timestamp() - min(d.first)))::float8 AS overdue_s
FROM unnest($2::text[]) AS t (topic), unnest($1::smallint[]) AS s (shard), LATERAL (
    SELECT count(*) AS waiting, min(due_at) AS first FROM (
        SELECT m.due_at FROM outbox m
        WHERE m.shard = s.shard AND m.topic = t.topic AND m.due_at <= now()
        ORDER BY m.due_at LIMIT $3
    ) AS due
) AS d
WHERE d.waiting > 0
GROUP BY t.topic;
