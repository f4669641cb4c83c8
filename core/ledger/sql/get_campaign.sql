-- get_campaign: one campaign.
--
-- Params   $1 shard  $2 campaign
-- Returns  epoch, version, state, spec and loosest (JSON text), or no row
SELECT epoch, version, state, spec::text AS spec, loosest::text AS loosest
FROM campaigns WHERE shard = $1 AND campaign = $2;
