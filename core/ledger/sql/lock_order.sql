-- lock_order: an order for the length of a transaction; who moves it, pays it or pays it back waits here for the other.
--
-- Params   $1 shard  $2 order_id
-- Returns  state, version, campaign, channel, buyer_id, amount, currency; or no row
SELECT state, version, campaign, channel, buyer_id, amount, currency FROM orders
WHERE shard = $1 AND order_id = $2 FOR UPDATE;
