-- list_channel_keys: all keys, the oldest of each channel first.
--
-- Params   none
-- Returns  key_id, channel, kind, digest, created_at, expires_at, revoked_at
SELECT key_id, channel, kind, digest, created_at, expires_at, revoked_at FROM channel_keys
WHERE shard = 0 ORDER BY channel, created_at, key_id;
