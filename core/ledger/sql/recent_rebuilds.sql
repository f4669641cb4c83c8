-- recent_rebuilds: rebuilds that began lately, one row for all shards of each, the newest first. For operators: it
-- spans shards.
--
-- Params   $1 how long ago at most, seconds  $2 most rows
-- Returns  campaign, epoch, at, why, done (false: broken off, set aside, or under way), orders, gap, missing (the numbers
--          of the gap as text, '' = none)
SELECT campaign, epoch, min(at) AS at, min(why) AS why, bool_and(done_at IS NOT NULL) AS done,
    coalesce(sum(orders), 0)::bigint AS orders, coalesce(sum(gap), 0)::bigint AS gap,
    coalesce(string_agg(format('shard %s: %s', shard, missing), '; ' ORDER BY shard) FILTER (WHERE gap > 0), '') AS missing
FROM rebuilds WHERE at > clock_timestamp() - make_interval(secs => $1)
GROUP BY campaign, epoch ORDER BY min(at) DESC, campaign LIMIT $2;
