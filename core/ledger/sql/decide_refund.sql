-- decide_refund: a requested refund is approved, and bears the number of its message from now on, or is rejected.
--
-- Params   $1 shard  $2 order_id  $3 refund_no as requested  $4 refund_no from now on  $5 state
-- Returns  nothing
UPDATE refunds SET refund_no = $4, state = $5 WHERE shard = $1 AND order_id = $2 AND refund_no = $3 AND state = 'requested';
