-- console_campaigns: campaigns with their definitions, those that are not closed first, then the newest change first.
-- For operators: it spans shards.
--
-- Params   $1 most rows
-- Returns  campaign, epoch, version, state, spec (JSON text), changed_at
SELECT campaign, epoch, version, state, spec::text AS spec, changed_at FROM campaigns
ORDER BY state = 'closed', changed_at DESC, campaign LIMIT $1;
