-- missing_numbers: sequence numbers of one campaign, epoch and shard that no order in the ledger, among the dead letters
-- or in the intake has.
--
-- Params   $1 shard  $2 campaign  $3 epoch  $4 seq: orders accepted; read before the intake was
--          $5 firsts bigint[]  $6 lasts bigint[]: parallel, the numbers seen in the intake  $7 most rows
--          $8 base: numbers up to here are of earlier epochs, and known or gone
-- Returns  seq, ascending
SELECT seq FROM (
    SELECT generate_series($8::bigint + 1, $4::bigint) AS seq
    EXCEPT
    SELECT seq FROM orders WHERE shard = $1 AND campaign = $2 AND epoch = $3 AND seq BETWEEN 1 AND $4
    EXCEPT
    SELECT seq FROM dead_letters WHERE shard = $1 AND campaign = $2 AND epoch = $3
    EXCEPT
    SELECT generate_series(r.first, r.last) FROM unnest($5::bigint[], $6::bigint[]) AS r (first, last)
) AS missing
ORDER BY seq LIMIT $7;
