-- leave_rebuild: who rebuilt a campaign has stopped; anybody may.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 who
-- Returns  nothing
UPDATE campaigns SET rebuilt_until = NULL, rebuilt_by = NULL
WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND rebuilt_by = $4;
