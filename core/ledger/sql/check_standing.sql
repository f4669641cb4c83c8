-- check_standing: how far the work on a campaign's orders has come; equal twice = nothing has moved in between.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  orders, versions (their sum), due (not paid, and to be expired within a minute), waiting (messages in the
--          outbox), pending (moves of stock that are journalled and not made)
SELECT count(*) AS orders, coalesce(sum(version), 0)::bigint AS versions,
       count(*) FILTER (WHERE state = 'accepted' AND pay_by < now() + interval '1 minute') AS due,
       (SELECT count(*) FROM outbox m JOIN orders USING (shard, order_id)
         WHERE shard = ANY ($1::smallint[]) AND campaign = $2) AS waiting,
       (SELECT count(*) FROM stock_moves
         WHERE shard = ANY ($1::smallint[]) AND campaign = $2 AND state = 'pending') AS pending
FROM orders WHERE shard = ANY ($1::smallint[]) AND campaign = $2;
