-- check_rebuilds: the rebuilds of a campaign, for the history checker.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  shard, epoch, at, done_at, base, gap (these NULL if it was broken off), why; by epoch
SELECT shard, epoch, at, done_at, base, gap, why
FROM rebuilds WHERE shard = ANY ($1::smallint[]) AND campaign = $2 ORDER BY epoch, shard;
