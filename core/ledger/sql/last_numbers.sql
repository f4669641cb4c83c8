-- last_numbers: the greatest sequence number that the ledger knows of a campaign on each of its shards, of any epoch.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  shard, seq: 0 = none
SELECT s.shard, greatest(
    (SELECT coalesce(max(seq), 0) FROM orders WHERE shard = s.shard AND campaign = $2),
    (SELECT coalesce(max(seq), 0) FROM dead_letters
      WHERE shard = s.shard AND campaign = $2 AND order_id IS NOT NULL)) AS seq
FROM unnest($1::smallint[]) AS s (shard);
