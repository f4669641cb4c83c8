-- set_room_rate: the rate of a waiting room is the one that an operator wants.
--
-- Params   $1 shard  $2 campaign  $3 mode  $4 rate, or null = as it was
-- Returns  setting; no row if there is no such room
UPDATE rooms
SET mode = $3, rate = coalesce($4, rate), setting = setting + 1, noted_at = clock_timestamp()
WHERE shard = $1 AND campaign = $2
RETURNING setting;
