-- check_dead_letters: a campaign's orders that were set aside, and entries on its shards that nobody could read.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  shard, reason, order_id, seq, epoch
SELECT shard, reason, order_id, seq, epoch
FROM dead_letters WHERE shard = ANY ($1::smallint[]) AND (campaign = $2 OR campaign IS NULL);
