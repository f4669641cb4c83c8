-- begin_rebuild: a campaign is out of service and gets a new epoch, if nobody else is rebuilding it.
--
-- Guarantee  G23: the caller holds orders and stock_moves locked against writers in the same transaction. So whatever was
--            written under an older epoch was written before, and statements that begin later see the new epoch.
-- Params     $1 shard  $2 campaign  $3 epoch: greater than any before  $4 who  $5 how long nobody else may, seconds
-- Returns    version, back_to; or no row: it is a draft, has this epoch or a newer one, or somebody else rebuilds it
UPDATE campaigns
SET epoch = $3, version = version + 1, state = 'recovering', changed_at = now(),
    back_to = CASE WHEN state = 'recovering' THEN back_to ELSE state END,
    rebuilt_by = $4, rebuilt_until = clock_timestamp() + make_interval(secs => $5)
WHERE shard = $1 AND campaign = $2 AND epoch < $3 AND state NOT IN ('draft', 'opening')
  AND (rebuilt_until IS NULL OR rebuilt_until < clock_timestamp() OR rebuilt_by = $4)
RETURNING version, back_to;
