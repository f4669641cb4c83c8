-- late_number: a process was told of a number of an earlier epoch that the rebuild after it had not heard of: what lies
-- between is lost too, and counted in the gap once, whoever says it.
--
-- Params   $1 shard  $2 campaign  $3 epoch of the number  $4 the number
-- Returns  late: numbers added to the gap, 0 = it was counted; or no row: no rebuild after this epoch has ended yet
WITH of_epoch AS (
    SELECT epoch, greatest(base, substring(missing FROM 'up to ([0-9]+) told late')::bigint) AS counted
    FROM rebuilds WHERE shard = $1 AND campaign = $2 AND epoch > $3 AND base IS NOT NULL
    ORDER BY epoch LIMIT 1 FOR UPDATE
), added AS (
    UPDATE rebuilds r
    SET gap = r.gap + $4 - o.counted,
        missing = concat_ws(', ', nullif(regexp_replace(r.missing, '(, )?up to [0-9]+ told late', ''), ''),
                            'up to ' || $4::bigint || ' told late')
    FROM of_epoch o WHERE r.shard = $1 AND r.campaign = $2 AND r.epoch = o.epoch AND o.counted < $4
)
SELECT greatest(0, $4::bigint - counted) AS late FROM of_epoch;
