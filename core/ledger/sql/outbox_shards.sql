-- outbox_shards: the shards with messages of a topic that are due. Read only, so it may span shards.
--
-- Params   $1 shards smallint[]  $2 topic
-- Returns  shard
SELECT s.shard FROM unnest($1::smallint[]) AS s (shard)
WHERE EXISTS (SELECT FROM outbox m WHERE m.shard = s.shard AND m.topic = $2 AND m.due_at <= now());
