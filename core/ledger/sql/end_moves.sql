-- end_moves: journalled changes of stock of one shard were made.
--
-- Guarantee  G23: as end_move.
-- Params   $1 shard  $2 campaign  $3 move_ids text[], 1 to 10,000  $4 epoch that they were made under
-- Returns  nothing
UPDATE stock_moves SET state = 'applied'
WHERE shard = $1 AND campaign = $2 AND move_id = ANY ($3::text[]) AND state = 'pending'
  AND NOT EXISTS (SELECT FROM rebuilds r WHERE r.shard = $1 AND r.campaign = $2 AND r.epoch > $4::integer);
