-- drop_channel_keys: forget the oldest keys of a channel that open nothing any more, all but some.
--
-- Params   $1 channel  $2 how many are kept
-- Returns  nothing
DELETE FROM channel_keys WHERE shard = 0 AND key_id IN (
    SELECT key_id FROM channel_keys
    WHERE shard = 0 AND channel = $1 AND (revoked_at IS NOT NULL OR expires_at <= clock_timestamp())
    ORDER BY created_at DESC, key_id OFFSET $2
);
