-- rebuild_lease: who rebuilds a campaign now.
--
-- Params   $1 shard  $2 campaign
-- Returns  back_to, rebuilt_by, left_s = how long nobody else may (NULL = anybody may); or no row
SELECT back_to, rebuilt_by, extract(epoch FROM rebuilt_until - clock_timestamp())::float8 AS left_s
FROM campaigns WHERE shard = $1 AND campaign = $2;
