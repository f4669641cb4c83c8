-- order_refunds: the refunds of one order, the oldest first.
--
-- Params   $1 shard  $2 order_id
-- Returns  refund_no, request_no, amount, currency, state, reason, lines (JSON text or NULL), at, done_at
SELECT refund_no, request_no, amount, currency, state, reason, lines::text AS lines, at, done_at
FROM refunds WHERE shard = $1 AND order_id = $2 ORDER BY at, refund_no;
