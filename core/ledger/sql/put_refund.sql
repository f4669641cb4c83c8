-- put_refund: a refund of an order is on record, requested or approved.
--
-- Guarantee  G19: the caller holds the order's lock and has checked that it fits.
-- Params     $1 shard  $2 order_id  $3 refund_no  $4 amount  $5 currency  $6 state  $7 reason  $8 lines (JSON or NULL)
--            $9 request_no, or NULL
-- Returns    nothing
INSERT INTO refunds (shard, order_id, refund_no, amount, currency, state, reason, lines, request_no)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9);
