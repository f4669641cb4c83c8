-- put_channel: a channel as it shall be; one that is there is changed.
--
-- Params   $1 channel  $2 state  $3 campaigns jsonb, NULL = all  $4 rates jsonb
-- Returns  nothing
INSERT INTO channels (shard, channel, state, campaigns, rates) VALUES (0, $1, $2, $3::jsonb, $4::jsonb)
ON CONFLICT (shard, channel) DO UPDATE
SET state = excluded.state, campaigns = excluded.campaigns, rates = excluded.rates;
