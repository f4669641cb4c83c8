-- order_head: all that the ledger knows of one order itself, for an operator.
--
-- Params   $1 shard  $2 order_id
-- Returns  campaign, epoch, seq, channel, request_key, buyer_id, client_ip, device_id, state, version, amount, currency,
--          accepted_at, pay_by, ship_to (JSON text or NULL), timer_at; or no row
SELECT campaign, epoch, seq, channel, request_key, buyer_id, client_ip, device_id, state, version, amount, currency,
       accepted_at, pay_by, ship_to::text AS ship_to, timer_at
FROM orders WHERE shard = $1 AND order_id = $2;
