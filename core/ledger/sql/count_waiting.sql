-- count_waiting: what waits in the outbox, by topic; of a long outbox so many messages are counted and no more. For
-- operators: it spans shards.
--
-- Params   $1 most messages to count
-- Returns  topic, messages, failing (an attempt failed), oldest_s (age of the oldest that was counted)
SELECT topic, count(*) AS messages, count(*) FILTER (WHERE error IS NOT NULL) AS failing,
       extract(epoch FROM now() - min(at))::float8 AS oldest_s
FROM (SELECT topic, at, error FROM outbox LIMIT $1) AS counted GROUP BY topic ORDER BY topic;
