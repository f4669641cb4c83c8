-- expire_channel_keys: the keys of a channel but one end after so long, if they do not end sooner.
--
-- Params   $1 channel  $2 key_id of the one  $3 seconds
-- Returns  key_id of those that are left to live
UPDATE channel_keys
SET expires_at = least(coalesce(expires_at, 'infinity'), clock_timestamp() + $3::double precision * interval '1 second')
WHERE shard = 0 AND channel = $1 AND key_id <> $2 AND revoked_at IS NULL
    AND coalesce(expires_at, 'infinity') > clock_timestamp()
RETURNING key_id;
