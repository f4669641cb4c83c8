-- insert_dead_letter: set one order, or a whole entry, aside with its reason, once.
--
-- Params   $1 shard  $2 entry_id  $3 place  $4 campaign  $5 epoch  $6 seq  $7 order_id  $8 reason  $9 payload
-- Returns  nothing
INSERT INTO dead_letters (shard, entry_id, place, campaign, epoch, seq, order_id, reason, payload)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (shard, entry_id, place) DO NOTHING;
