-- drop_blocks: take a block away, and with it all whose time is over.
--
-- Params   $1 kind  $2 value, both NULL = only those whose time is over
-- Returns  kind, value of those that were in force
WITH gone AS (
    DELETE FROM blocks WHERE shard = 0 AND ((kind = $1 AND value = $2) OR until_at <= clock_timestamp())
    RETURNING kind, value, until_at
)
SELECT kind, value FROM gone WHERE coalesce(until_at, 'infinity') > clock_timestamp();
