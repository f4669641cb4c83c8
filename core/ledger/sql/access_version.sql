-- access_version: of channels, keys and blocks as they stand.
--
-- Params   none
-- Returns  version; no row before the first change
SELECT version FROM access_version WHERE shard = 0;
