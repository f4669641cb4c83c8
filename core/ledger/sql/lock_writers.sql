-- lock_writers: until the end of the transaction nobody writes orders or changes of stock; who is doing so has finished.
--
-- Whoever comes after us waits behind us: the caller has set a short lock_timeout, and tries again.
--
-- Params   none
-- Returns  nothing
LOCK TABLE orders, stock_moves IN SHARE MODE;
