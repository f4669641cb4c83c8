-- raise_alerts: what an audit found wrong with a campaign stands: for the first time, again, or still. One that was over
-- begins anew: it stands since now, seen once.
--
-- Params   $1 the campaign's first shard  $2 campaign, then parallel arrays: $3 kinds text[]  $4 details text[]
-- Returns  kind, detail of those that did not stand before this call
WITH stood AS (
    SELECT kind FROM alerts WHERE shard = $1 AND campaign = $2 AND over_at IS NULL
), raised AS (
    INSERT INTO alerts AS a (shard, campaign, kind, detail)
    SELECT $1, $2, f.kind, f.detail FROM unnest($3::text[], $4::text[]) AS f (kind, detail)
    ON CONFLICT (shard, campaign, kind)
    DO UPDATE SET last_at = clock_timestamp(), detail = excluded.detail, over_at = NULL,
        first_at = CASE WHEN a.over_at IS NULL THEN a.first_at ELSE clock_timestamp() END,
        seen = CASE WHEN a.over_at IS NULL THEN a.seen + 1 ELSE 1 END
    RETURNING kind, detail
)
SELECT kind, detail FROM raised WHERE kind NOT IN (SELECT kind FROM stood) ORDER BY kind;
