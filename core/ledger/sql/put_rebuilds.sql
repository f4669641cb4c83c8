-- put_rebuilds: a new epoch of a campaign begins on these shards; orders of older ones come too late from now on.
--
-- Params   $1 shards smallint[]  $2 campaign  $3 epoch  $4 who  $5 why
-- Returns  nothing
INSERT INTO rebuilds (shard, campaign, epoch, made_by, why)
SELECT shard, $2, $3, $4, $5 FROM unnest($1::smallint[]) AS s (shard);
