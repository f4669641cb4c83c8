-- put_channel_key: a new key of a channel.
--
-- Params   $1 key_id  $2 channel  $3 kind  $4 digest
-- Returns  nothing
INSERT INTO channel_keys (shard, key_id, channel, kind, digest) VALUES (0, $1, $2, $3, $4);
