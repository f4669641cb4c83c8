-- list_blocks: all that are in force, by kind and value.
--
-- Params   none
-- Returns  kind, value, reason, created_at, until_at
SELECT kind, value, reason, created_at, until_at FROM blocks
WHERE shard = 0 AND coalesce(until_at, 'infinity') > clock_timestamp() ORDER BY kind, value;
