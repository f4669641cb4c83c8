-- 0008 pre: the reconcile worker looks in each round for orders whose message to the store is nowhere, and for holds of
-- orders that were given up; its journal has a word for a message that is repeated.
-- Lock  SHARE on orders and dead_letters while the indexes are built: intake goes on, its orders wait in the stream;
--       ACCESS EXCLUSIVE on repairs while its rows are looked through.
-- Undo  DROP INDEX orders_waiting, dead_letters_order; DELETE FROM repairs WHERE what = 'repeated'; ALTER TABLE repairs
--       DROP CONSTRAINT repairs_what, ADD CONSTRAINT repairs_what CHECK (what IN ('requeued', 'released', 'settled'));
SET LOCAL lock_timeout = '5s';

CREATE INDEX orders_waiting ON orders (shard, campaign, state)
    WHERE state IN ('allocating', 'refund_pending', 'refunded');

CREATE INDEX dead_letters_order ON dead_letters (shard, order_id);

ALTER TABLE repairs DROP CONSTRAINT repairs_what,
    ADD CONSTRAINT repairs_what CHECK (what IN ('requeued', 'released', 'settled', 'repeated'));
