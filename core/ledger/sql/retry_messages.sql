-- retry_messages: messages of one shard and topic that could not be delivered now are due again later.
--
-- Params   $1 shard  $2 topic, then parallel arrays, 1 to 1,000 elements: $3 order_ids uuid[]  $4 versions
--          $5 waits in seconds float8[]; then $6 error
-- Returns  nothing
UPDATE outbox m SET due_at = now() + make_interval(secs => d.wait_s), error = $6
FROM unnest($3::uuid[], $4::integer[], $5::float8[]) AS d (order_id, version, wait_s)
WHERE m.shard = $1 AND m.order_id = d.order_id AND m.version = d.version AND m.topic = $2;
