-- count_topics: the messages of some topics that wait. For operators: it spans shards.
--
-- Params   $1 topics text[]
-- Returns  messages
SELECT count(*) AS messages FROM outbox WHERE topic = ANY($1::text[]);
