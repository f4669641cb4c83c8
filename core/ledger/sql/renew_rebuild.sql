-- renew_rebuild: whoever rebuilds a campaign goes on.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 who  $5 how long nobody else may, seconds
-- Returns  epoch, or no row: somebody else has taken over
UPDATE campaigns SET rebuilt_until = clock_timestamp() + make_interval(secs => $5)
WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND state = 'recovering' AND rebuilt_by = $4
RETURNING epoch;
