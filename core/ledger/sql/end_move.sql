-- end_move: a journalled change of stock was made, or refused.
--
-- Params   $1 shard  $2 campaign  $3 move_id  $4 state
-- Returns  nothing
UPDATE stock_moves SET state = $4 WHERE shard = $1 AND campaign = $2 AND move_id = $3 AND state = 'pending';
