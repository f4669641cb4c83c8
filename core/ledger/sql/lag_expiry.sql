-- lag_expiry: orders whose time to pay, to be received or to be completed has passed, and that no expiry worker has
-- moved yet. Orders under review wait for a person and are counted too. Read only, so it may span shards.
--
-- Params   $1 shards smallint[]  $2 most orders that are counted, of one kind on one shard
-- Returns  waiting, overdue_s = since when the first of them is due; 0 if none is
SELECT coalesce(sum(d.waiting), 0)::bigint AS waiting,
       coalesce(greatest(0, extract(epoch FROM clock_timestamp() - min(d.first))), 0)::float8 AS overdue_s
FROM unnest($1::smallint[]) AS s (shard), LATERAL (
    SELECT count(*) AS waiting, min(at) AS first FROM (
        SELECT o.pay_by AS at FROM orders o
        WHERE o.shard = s.shard AND o.state = 'accepted' AND o.pay_by <= now()
        ORDER BY o.pay_by LIMIT $2
    ) AS unpaid
    UNION ALL
    SELECT count(*), min(at) FROM (
        SELECT o.timer_at AS at FROM orders o
        WHERE o.shard = s.shard AND o.state = 'shipped' AND o.timer_at <= now()
        ORDER BY o.timer_at LIMIT $2
    ) AS shipped
    UNION ALL
    SELECT count(*), min(at) FROM (
        SELECT o.timer_at AS at FROM orders o
        WHERE o.shard = s.shard AND o.state = 'received' AND o.timer_at <= now()
        ORDER BY o.timer_at LIMIT $2
    ) AS received
) AS d;
