-- open_alerts: alerts that stand, the oldest first. For operators: it spans shards.
--
-- Params   $1 most rows
-- Returns  campaign, kind, first_at, last_at, seen, detail
SELECT campaign, kind, first_at, last_at, seen, detail FROM alerts
WHERE over_at IS NULL ORDER BY first_at, campaign, kind LIMIT $1;
