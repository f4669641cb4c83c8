-- end_refund_message: the payment centre is not asked for this refund any more; what a relay is sending just now goes out.
--
-- Params   $1 shard  $2 order_id  $3 version of the order at the refund's message
-- Returns  nothing
WITH waiting AS (
    DELETE FROM outbox WHERE shard = $1 AND order_id = $2 AND version = $3 AND topic = 'refund'
)
DELETE FROM dead_messages WHERE shard = $1 AND order_id = $2 AND version = $3 AND topic = 'refund';
