-- put_campaign: define a campaign, or define it again while it is a draft.
--
-- Params   $1 shard  $2 campaign  $3 spec (JSON)  $4 its limits (JSON)  $5 the version that is changed, NULL = any
-- Returns  version, or no row if the campaign is no draft any more, or its version is another
INSERT INTO campaigns AS c (shard, campaign, epoch, version, state, spec, loosest)
VALUES ($1, $2, 1, 1, 'draft', $3::jsonb, $4::jsonb)
ON CONFLICT (shard, campaign) DO UPDATE
SET spec = excluded.spec, loosest = excluded.loosest, version = c.version + 1, changed_at = now()
WHERE c.state = 'draft' AND ($5::int IS NULL OR c.version = $5)
RETURNING version;
