-- revoke_channel_keys: keys of a channel open nothing any more.
--
-- Params   $1 channel  $2 key_id, NULL = all
-- Returns  key_id of those that this call revoked
UPDATE channel_keys SET revoked_at = clock_timestamp()
WHERE shard = 0 AND channel = $1 AND ($2::text IS NULL OR key_id = $2) AND revoked_at IS NULL
RETURNING key_id;
