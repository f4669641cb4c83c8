-- order_trace: the trace of an order, if it was given one of its own, or is recorded.
--
-- Params   $1 shard  $2 order_id
-- Returns  traceparent; or no row: its trace id is its order id, and nobody records it
SELECT traceparent FROM order_traces WHERE shard = $1 AND order_id = $2;
