-- recent_repairs: which of these orders of one shard had such a repair not long ago.
--
-- Params   $1 shard  $2 order_ids uuid[], 1 to 1,000  $3 what  $4 how long ago at most, seconds
-- Returns  order_id
SELECT DISTINCT order_id FROM repairs
WHERE shard = $1 AND order_id = ANY ($2::uuid[]) AND what = $3
  AND at > clock_timestamp() - make_interval(secs => $4);
