-- drop_dead_letter: an order that was set aside is given up; it stays on record, so the audit still knows its number.
--
-- Params   $1 shard  $2 entry_id  $3 place
-- Returns  entry_id, or no row if it was gone
UPDATE dead_letters SET dropped_at = now() WHERE shard = $1 AND entry_id = $2 AND place = $3 RETURNING entry_id;
