-- put_block: a block, in force from now on; one that is there gets this end and this reason.
--
-- Params   $1 kind  $2 value  $3 reason  $4 seconds that it lasts, NULL = until it is taken away
-- Returns  kind, value, reason, created_at, until_at
INSERT INTO blocks (shard, kind, value, reason, until_at)
VALUES (0, $1, $2, $3, clock_timestamp() + $4::double precision * interval '1 second')
ON CONFLICT (shard, kind, value) DO UPDATE SET reason = excluded.reason, until_at = excluded.until_at
RETURNING kind, value, reason, created_at, until_at;
