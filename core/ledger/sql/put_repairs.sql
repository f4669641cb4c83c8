-- put_repairs: journal repairs of one shard before they are made.
--
-- Params   $1 shard  $2 what  $3 campaign, then parallel arrays, 1 to 1,000 elements: $4 order_ids uuid[]  $5 whys text[]
-- Returns  nothing
INSERT INTO repairs (shard, order_id, what, campaign, why)
SELECT $1, r.order_id, $2, $3, r.why FROM unnest($4::uuid[], $5::text[]) AS r (order_id, why);
