-- order_lines: the lines of one order.
--
-- Params   $1 shard  $2 order_id
-- Returns  sku, quantity, price, in the order of the basket
SELECT sku, quantity, price FROM order_items WHERE shard = $1 AND order_id = $2 ORDER BY line;
