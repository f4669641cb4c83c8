-- outbox_shards: the topics and shards with messages that are due. Read only, so it may span shards. The first of each
-- is asked for: as EXISTS the planner would rather read all that is due, a million messages that wait for a partner.
--
-- Params   $1 shards smallint[]  $2 topics text[]
-- Returns  topic, shard, in the order of $2
SELECT t.topic, s.shard
FROM unnest($2::text[]) WITH ORDINALITY AS t (topic, place), unnest($1::smallint[]) AS s (shard), LATERAL (
    SELECT FROM outbox m WHERE m.shard = s.shard AND m.topic = t.topic AND m.due_at <= now() ORDER BY m.due_at LIMIT 1
) AS due
ORDER BY t.place;
