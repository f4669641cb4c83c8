-- end_alerts: alerts of these kinds do not stand any more.
--
-- Params   $1 the campaign's first shard  $2 campaign  $3 kinds text[]
-- Returns  kind of those that stood until this call
UPDATE alerts SET over_at = clock_timestamp()
WHERE shard = $1 AND campaign = $2 AND kind = ANY ($3::text[]) AND over_at IS NULL
RETURNING kind;
