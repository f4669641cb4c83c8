-- 0006 pre: the orders of a buyer by an index of their own; old code never asks for it.
-- The buyer first: with the shard first the planner takes it for looks by shard and id, and reads the shard's all.
-- Lock  SHARE on orders while the index is built: intake goes on, its orders wait in the stream.
-- Undo  DROP INDEX orders_buyer;
SET LOCAL lock_timeout = '5s';

CREATE INDEX orders_buyer ON orders (buyer_id, shard, order_id);
