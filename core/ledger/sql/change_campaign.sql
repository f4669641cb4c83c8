-- change_campaign: move a campaign from one state to another, or change its definition within a state.
--
-- Params   $1 shard  $2 campaign  $3 expected version  $4 new state  $5 spec (JSON)
--          $6 loosest limits (JSON)
-- Returns  the new version, or no row if somebody else was first
UPDATE campaigns
SET state = $4, spec = $5::jsonb, loosest = $6::jsonb, version = version + 1, changed_at = now()
WHERE shard = $1 AND campaign = $2 AND version = $3
RETURNING version;
