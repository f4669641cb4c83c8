-- due_shards: the shards with orders whose time to pay has passed. Read only, so it may span shards.
--
-- Params   $1 shards smallint[]
-- Returns  shard
SELECT s.shard FROM unnest($1::smallint[]) AS s (shard)
WHERE EXISTS (SELECT FROM orders o WHERE o.shard = s.shard AND o.state = 'accepted' AND o.pay_by <= now());
