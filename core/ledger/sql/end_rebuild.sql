-- end_rebuild: a rebuilt campaign is in the state that it had before.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 who
-- Returns  version, or no row: somebody else has taken over
UPDATE campaigns
SET state = back_to, back_to = NULL, rebuilt_by = NULL, rebuilt_until = NULL, version = version + 1, changed_at = now()
WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND state = 'recovering' AND rebuilt_by = $4
RETURNING version;
