-- get_room: the waiting room of a campaign.
--
-- Params   $1 shard  $2 campaign
-- Returns  room_id, mode, rate, setting, joined, admitted, lapsed, seed, early; no row if it has none yet
SELECT room_id, mode, rate, setting, joined, admitted, lapsed, seed, early
FROM rooms
WHERE shard = $1 AND campaign = $2;
