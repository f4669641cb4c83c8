-- claim_messages: take messages of one shard that are due, for the length of a lease. No lock outlives the statement:
-- a relay that dies leaves them to the next one when the lease has passed.
--
-- Params   $1 shard  $2 topic  $3 most messages, 1 to 1,000  $4 lease in seconds
-- Returns  order_id, version, attempts (this one counted), waited_ms, campaign, epoch = the campaign's newest on this
--          shard: a rebuild puts holds of older ones under it
WITH due AS (
    SELECT order_id, version FROM outbox
    WHERE shard = $1 AND topic = $2 AND due_at <= now()
    ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE outbox m SET due_at = now() + make_interval(secs => $4), attempts = m.attempts + 1
    FROM due d
    WHERE m.shard = $1 AND m.order_id = d.order_id AND m.version = d.version AND m.topic = $2
    RETURNING m.order_id, m.version, m.attempts, m.at
)
SELECT t.order_id, t.version, t.attempts,
       (extract(epoch FROM clock_timestamp() - t.at) * 1000)::bigint AS waited_ms, o.campaign,
       coalesce((SELECT max(r.epoch) FROM rebuilds r WHERE r.shard = $1 AND r.campaign = o.campaign), o.epoch) AS epoch
FROM taken t JOIN orders o ON o.shard = $1 AND o.order_id = t.order_id;
