-- retry_messages: messages of one shard and topic that could not be delivered now are due again later. Those that
-- another relay has taken meanwhile (their attempts grew) are left to it.
--
-- Params   $1 shard  $2 topic, then parallel arrays, 1 to 1,000 elements: $3 order_ids uuid[]  $4 versions
--          $5 attempts  $6 waits in seconds float8[]  $7 errors text[], NULL = it was not tried: no attempt is counted
-- Returns  nothing
UPDATE outbox m
SET due_at = now() + make_interval(secs => d.wait_s), error = coalesce(d.error, m.error),
    attempts = m.attempts - CASE WHEN d.error IS NULL THEN 1 ELSE 0 END
FROM unnest($3::uuid[], $4::integer[], $5::integer[], $6::float8[], $7::text[])
     AS d (order_id, version, attempts, wait_s, error)
WHERE m.shard = $1 AND m.order_id = d.order_id AND m.version = d.version AND m.topic = $2
  AND m.attempts = d.attempts;
