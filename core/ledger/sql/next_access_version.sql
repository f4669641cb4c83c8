-- next_access_version: whoever changes channels, keys or blocks begins with this and so has its turn. The number is at
-- least the clock's: a ledger that was restored from an older copy goes on beyond what its store has seen.
--
-- Params   none
-- Returns  version
INSERT INTO access_version (shard, version) VALUES (0, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
ON CONFLICT (shard) DO UPDATE SET version =
    greatest(access_version.version + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
RETURNING version;
