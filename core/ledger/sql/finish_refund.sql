-- finish_refund: the payment centre has paid back an approved refund.
--
-- Params   $1 shard  $2 order_id  $3 refund_no  $4 when, by the centre's clock
-- Returns  nothing
UPDATE refunds SET state = 'done', done_at = $4 WHERE shard = $1 AND order_id = $2 AND refund_no = $3 AND state = 'approved';
