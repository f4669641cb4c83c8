-- drop_dead_letter: an order that was set aside is given up; it stays on record, so the audit still knows its number.
--
-- Guarantee  an order that somebody replays, or that is in the ledger, is not given up: its units are its own.
-- Params     $1 shard  $2 entry_id  $3 place
-- Returns    entry_id, or no row if it cannot be given up, or was
UPDATE dead_letters d SET dropped_at = now()
WHERE shard = $1 AND entry_id = $2 AND place = $3 AND dropped_at IS NULL AND replayed_at IS NULL
      AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = d.shard AND o.order_id = d.order_id)
RETURNING entry_id;
