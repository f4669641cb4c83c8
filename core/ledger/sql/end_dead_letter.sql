-- end_dead_letter: an order that was set aside is on its way again.
--
-- Params   $1 shard  $2 entry_id  $3 place
-- Returns  entry_id, or no row if it was gone
DELETE FROM dead_letters WHERE shard = $1 AND entry_id = $2 AND place = $3 RETURNING entry_id;
