-- lock_writers: until the end of the transaction nobody writes orders or changes of stock; who is doing so has finished.
--
-- Params   none
-- Returns  nothing
LOCK TABLE orders, stock_moves IN SHARE MODE;
