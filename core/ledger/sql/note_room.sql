-- note_room: the ledger knows how far a waiting room has come. Counters never go back, and the draw is noted once.
--
-- Params   $1 shard  $2 campaign  $3 room_id  $4 joined  $5 admitted  $6 lapsed  $7 seed  $8 early
--          $9 rate, noted as long as $10 setting is the newest one
-- Returns  setting; no row if there is no such room
UPDATE rooms
SET joined = greatest(joined, $4), admitted = greatest(admitted, $5), lapsed = greatest(lapsed, $6),
    seed = CASE WHEN seed = '' THEN $7 ELSE seed END, early = CASE WHEN seed = '' THEN $8 ELSE early END,
    rate = CASE WHEN setting = $10 THEN $9 ELSE rate END, noted_at = clock_timestamp()
WHERE shard = $1 AND campaign = $2 AND room_id = $3
RETURNING setting;
