-- end_move: a journalled change of stock was made, or refused.
--
-- Guarantee  G23: what was made under an older epoch than the newest rebuild's is gone with it, and still to be made.
-- Params   $1 shard  $2 campaign  $3 move_id  $4 state  $5 epoch that it was made under
-- Returns  nothing
UPDATE stock_moves SET state = $4 WHERE shard = $1 AND campaign = $2 AND move_id = $3 AND state = 'pending'
  AND ($4 = 'refused'
       OR NOT EXISTS (SELECT FROM rebuilds r WHERE r.shard = $1 AND r.campaign = $2 AND r.epoch > $5::integer));
