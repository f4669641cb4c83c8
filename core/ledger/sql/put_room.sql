-- put_room: a campaign has a waiting room. The one that it has already stays as it is.
--
-- Params   $1 shard  $2 campaign  $3 room_id  $4 mode  $5 rate
-- Returns  nothing
INSERT INTO rooms (shard, campaign, room_id, mode, rate)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (shard, campaign) DO NOTHING;
