-- order_payments: the payments of one order as they were reported, the oldest first.
--
-- Params   $1 shard  $2 order_id
-- Returns  payment_no, status, amount, currency, paid_at, at
SELECT payment_no, status, amount, currency, paid_at, at FROM payments
WHERE shard = $1 AND order_id = $2 ORDER BY at, payment_no;
