-- count_messages: the messages of a campaign that nobody has had yet. Read only, so it may span shards.
--
-- Params   $1 shards smallint[]: the campaign's  $2 campaign
-- Returns  waiting = in the outbox, dead
SELECT
    -- One look-up by primary key per message, whatever the planner knows of tables that have just been filled.
    (SELECT count(*) FROM outbox m WHERE m.shard = ANY($1::smallint[])
        AND (SELECT campaign FROM orders o WHERE o.shard = m.shard AND o.order_id = m.order_id) = $2) AS waiting,
    (SELECT count(*) FROM dead_messages m WHERE m.shard = ANY($1::smallint[])
        AND (SELECT campaign FROM orders o WHERE o.shard = m.shard AND o.order_id = m.order_id) = $2) AS dead;
