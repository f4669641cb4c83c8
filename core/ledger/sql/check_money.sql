-- check_money: all payments and refunds of a campaign's orders, for the history checker.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  kind (payment or refund), order_id, number, state, amount
SELECT 'payment' AS kind, p.order_id, p.payment_no AS number, p.status AS state, p.amount
FROM payments p JOIN orders o USING (shard, order_id) WHERE o.shard = ANY ($1::smallint[]) AND o.campaign = $2
UNION ALL
SELECT 'refund', r.order_id, r.refund_no, r.state, r.amount
FROM refunds r JOIN orders o USING (shard, order_id) WHERE o.shard = ANY ($1::smallint[]) AND o.campaign = $2;
