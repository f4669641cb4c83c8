-- put_payment: record a payment once per serial number; what an earlier one of the same number said stays.
--
-- Params   $1 shard  $2 payment_no  $3 order_id  $4 status  $5 amount  $6 currency  $7 paid_at
-- Returns  order_id, status, amount, currency as on record, fresh = whether THIS call recorded it
WITH fresh AS (
    INSERT INTO payments (shard, payment_no, order_id, status, amount, currency, paid_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (shard, payment_no) DO NOTHING
    RETURNING order_id, status, amount, currency
)
SELECT order_id, status, amount, currency, true AS fresh FROM fresh
UNION ALL
SELECT order_id, status, amount, currency, false FROM payments
WHERE shard = $1 AND payment_no = $2 AND NOT EXISTS (SELECT FROM fresh);
