-- lapse_refunds: requests that nobody decided are covered by the refund of everything.
--
-- Params   $1 shard  $2 order_id  $3 state  $4 reason
-- Returns  nothing
UPDATE refunds SET state = $3, reason = $4 WHERE shard = $1 AND order_id = $2 AND state = 'requested';
