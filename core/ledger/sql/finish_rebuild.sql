-- finish_rebuild: what a rebuild has installed on a shard.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 base  $5 orders  $6 held  $7 sold  $8 gap  $9 missing
-- Returns  nothing
UPDATE rebuilds SET done_at = clock_timestamp(), base = $4, orders = $5, held = $6, sold = $7, gap = $8, missing = $9
WHERE shard = $1 AND campaign = $2 AND epoch = $3;
