-- order_totals: the money of one order, in minor units; exact while the caller holds its lock.
--
-- Params   $1 shard  $2 order_id
-- Returns  paid; booked = refunds approved or done; due = refunds approved and not done; asked = requests to be reviewed
SELECT (SELECT coalesce(sum(amount), 0)::bigint FROM payments
        WHERE shard = $1 AND order_id = $2 AND status = 'paid') AS paid,
       coalesce(sum(amount) FILTER (WHERE state IN ('approved', 'done')), 0)::bigint AS booked,
       coalesce(sum(amount) FILTER (WHERE state = 'approved'), 0)::bigint AS due,
       count(*) FILTER (WHERE state = 'requested') AS asked
FROM refunds WHERE shard = $1 AND order_id = $2;
