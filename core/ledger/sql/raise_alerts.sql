-- raise_alerts: what an audit found wrong with a campaign stands: for the first time, again, or still.
--
-- Params   $1 the campaign's first shard  $2 campaign, then parallel arrays: $3 kinds text[]  $4 details text[]
-- Returns  kind, detail of those that did not stand before this call
WITH stood AS (
    SELECT kind FROM alerts WHERE shard = $1 AND campaign = $2 AND over_at IS NULL
), raised AS (
    INSERT INTO alerts AS a (shard, campaign, kind, detail)
    SELECT $1, $2, f.kind, f.detail FROM unnest($3::text[], $4::text[]) AS f (kind, detail)
    ON CONFLICT (shard, campaign, kind)
    DO UPDATE SET last_at = clock_timestamp(), seen = a.seen + 1, detail = excluded.detail, over_at = NULL
    RETURNING kind, detail
)
SELECT kind, detail FROM raised WHERE kind NOT IN (SELECT kind FROM stood) ORDER BY kind;
