-- current_epoch: the newest epoch that a rebuild gave a campaign on a shard.
--
-- Params   $1 shard  $2 campaign
-- Returns  epoch, or NULL: it was never rebuilt
SELECT max(epoch) AS epoch FROM rebuilds WHERE shard = $1 AND campaign = $2;
