-- late_messages: per destination, the messages that should have been delivered by now: overdue, or failed and still
-- there. For operators: it spans shards.
--
-- Params   parallel arrays, one element per topic: $1 topics text[]  $2 destinations text[]; $3 late = so many seconds
--          overdue, or so old if an attempt failed
-- Returns  destination, messages, and of the one that came to be first: topic, attempts, waited_s, overdue_s (negative =
--          due in so long), error (its own, or if it has none that of the one with most attempts; NULL = none failed)
SELECT DISTINCT ON (t.destination) t.destination,
       count(*) OVER w AS messages, m.topic, m.attempts,
       extract(epoch FROM now() - m.at)::float8 AS waited_s, extract(epoch FROM now() - m.due_at)::float8 AS overdue_s,
       coalesce(m.error, first_value(m.error) OVER (w ORDER BY m.error IS NULL, m.attempts DESC)) AS error
FROM outbox m JOIN unnest($1::text[], $2::text[]) AS t (topic, destination) ON t.topic = m.topic
WHERE m.due_at <= now() - make_interval(secs => $3)
   OR m.error IS NOT NULL AND m.at <= now() - make_interval(secs => $3)
WINDOW w AS (PARTITION BY t.destination)
ORDER BY t.destination, m.at, m.order_id, m.version, m.topic;
