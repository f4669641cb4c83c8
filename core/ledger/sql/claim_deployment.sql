-- claim_deployment: the deployment of this ledger, written down by whoever asks first.
--
-- Params   $1 shards of the asking process
-- Returns  shards, id; no row if somebody else writes it down at this very moment: ask again
WITH fresh AS (
    INSERT INTO deployment (shard, shards, id) VALUES (0, $1, gen_random_uuid())
    ON CONFLICT (shard) DO NOTHING
    RETURNING shards, id
)
SELECT shards, id FROM fresh
UNION ALL
SELECT shards, id FROM deployment WHERE shard = 0 AND NOT EXISTS (SELECT FROM fresh);
