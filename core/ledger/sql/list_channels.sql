-- list_channels: all of them, by name.
--
-- Params   none
-- Returns  channel, state, campaigns, rates, created_at
SELECT channel, state, campaigns, rates, created_at FROM channels WHERE shard = 0 ORDER BY channel;
