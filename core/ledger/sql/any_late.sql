-- any_late: whether a campaign was rebuilt after an epoch in which its orders were accepted.
--
-- Guarantee  G23: asked in the transaction that writes the orders, after it has locked them against lock_writers: a
--            rebuild that this does not see waits until that transaction has ended.
-- Params     parallel arrays, one element per entry:  $1 shards  $2 campaigns  $3 epochs
-- Returns    true or false
SELECT EXISTS (
    SELECT FROM unnest($1::smallint[], $2::text[], $3::integer[]) AS o (shard, campaign, epoch)
    JOIN rebuilds r ON r.shard = o.shard AND r.campaign = o.campaign AND r.epoch > o.epoch
);
