-- metrics_outbox: all that waits in the outbox. For operators: it spans shards, and reads the whole table.
--
-- Params   none
-- Returns  topic, messages, oldest_s; topics without any are left out
SELECT topic, count(*) AS messages, greatest(0, extract(epoch FROM clock_timestamp() - min(at)))::float8 AS oldest_s
FROM outbox GROUP BY topic;
