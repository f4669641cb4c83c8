-- check_orders: all orders of a campaign as they stand, for the history checker.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  shard, order_id, epoch, seq, channel, request_key, buyer_id, client_ip, device_id, state, version, amount,
--          accepted_at, pay_by, skus and quantities (arrays, by line)
SELECT o.shard, o.order_id, o.epoch, o.seq, o.channel, o.request_key, o.buyer_id, o.client_ip, o.device_id, o.state,
       o.version, o.amount, o.accepted_at, o.pay_by,
       array_agg(i.sku ORDER BY i.line) AS skus, array_agg(i.quantity ORDER BY i.line) AS quantities
FROM orders o LEFT JOIN order_items i USING (shard, order_id)
WHERE o.shard = ANY ($1::smallint[]) AND o.campaign = $2
GROUP BY o.shard, o.order_id;
