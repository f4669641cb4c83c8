-- end_moves: journalled changes of stock of one shard were made.
--
-- Params   $1 shard  $2 campaign  $3 move_ids text[], 1 to 10,000
-- Returns  nothing
UPDATE stock_moves SET state = 'applied'
WHERE shard = $1 AND campaign = $2 AND move_id = ANY ($3::text[]) AND state = 'pending';
