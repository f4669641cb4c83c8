-- find_payment: the orders that a payment number stands for, one look-up a shard. For operators: it spans shards.
--
-- Params   $1 shards smallint[]  $2 payment_no  $3 most rows
-- Returns  order_id
SELECT order_id FROM payments WHERE shard = ANY ($1::smallint[]) AND payment_no = $2 ORDER BY at DESC LIMIT $3;
