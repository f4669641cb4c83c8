-- order_versions: how far orders are; one query for all that are watched.
--
-- Params   $1 shards smallint[], $2 order_ids uuid[]: parallel, 1 to 20,000 elements
-- Returns  order_id, version of those that the ledger has
SELECT o.order_id, o.version FROM unnest($1::smallint[], $2::uuid[]) AS w (shard, order_id)
JOIN orders o ON o.shard = w.shard AND o.order_id = w.order_id;
