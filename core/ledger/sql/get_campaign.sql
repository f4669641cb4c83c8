-- get_campaign: one campaign.
--
-- Params   $1 shard  $2 campaign
-- Returns  epoch, version, state, spec (JSON text), or no row
SELECT epoch, version, state, spec::text AS spec FROM campaigns WHERE shard = $1 AND campaign = $2;
