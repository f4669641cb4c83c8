-- order_state: what a move needs to know of an order.
--
-- Params   $1 shard  $2 order_id
-- Returns  state, version, campaign, channel, buyer_id, amount, currency; or no row
SELECT state, version, campaign, channel, buyer_id, amount, currency FROM orders WHERE shard = $1 AND order_id = $2;
