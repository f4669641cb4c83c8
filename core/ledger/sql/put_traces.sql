-- put_traces: the traces of orders that are in the ledger are on record, once per order.
--
-- Params   parallel arrays, one element per order, 1 to 10,000 elements: $1 shards  $2 order_ids  $3 traceparents
-- Returns  nothing
INSERT INTO order_traces (shard, order_id, traceparent)
SELECT t.* FROM unnest($1::smallint[], $2::uuid[], $3::text[]) AS t (shard, order_id, traceparent)
WHERE EXISTS (SELECT FROM orders o WHERE o.shard = t.shard AND o.order_id = t.order_id)
ON CONFLICT (shard, order_id) DO NOTHING;
