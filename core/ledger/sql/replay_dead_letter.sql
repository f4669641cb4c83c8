-- replay_dead_letter: an order that was set aside is about to be put back into the intake, again perhaps.
--
-- Guarantee  an order that was given up is not put back: its units are others'.
-- Params     $1 shard  $2 entry_id  $3 place
-- Returns    entry_id, or no row if it was given up, or is gone
UPDATE dead_letters SET replayed_at = now()
WHERE shard = $1 AND entry_id = $2 AND place = $3 AND dropped_at IS NULL RETURNING entry_id;
