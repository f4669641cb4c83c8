-- finish_messages: delivered messages of one shard and topic leave the outbox, and their deliveries stay on record.
--
-- Params   $1 shard  $2 topic, then parallel arrays, 1 to 1,000 elements: $3 order_ids uuid[]  $4 versions
--          $5 waited_ms  $6 attempts  $7 worked_ms: of the attempt that did it  $8 outcomes text[]
-- Returns  nothing
WITH done AS (
    SELECT * FROM unnest($3::uuid[], $4::integer[], $5::bigint[], $6::integer[], $7::bigint[], $8::text[])
             AS d (order_id, version, waited_ms, attempts, worked_ms, outcome)
), gone AS (
    DELETE FROM outbox m USING done d
    WHERE m.shard = $1 AND m.order_id = d.order_id AND m.version = d.version AND m.topic = $2
)
INSERT INTO deliveries (shard, order_id, version, topic, waited_ms, worked_ms, attempts, outcome)
SELECT $1, order_id, version, $2, waited_ms, worked_ms, attempts, outcome FROM done
ON CONFLICT (shard, order_id, version, topic) DO NOTHING;
