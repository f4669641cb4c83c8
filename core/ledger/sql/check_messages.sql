-- check_messages: all messages of a campaign's orders, wherever they stand, for the history checker.
--
-- Params   $1 shards smallint[]  $2 campaign
-- Returns  place (outbox, deliveries or dead), order_id, version, topic, and of deliveries at, outcome, attempts
SELECT 'outbox' AS place, m.order_id, m.version, m.topic, NULL::timestamptz AS at, '' AS outcome, 0 AS attempts
FROM outbox m JOIN orders o USING (shard, order_id) WHERE o.shard = ANY ($1::smallint[]) AND o.campaign = $2
UNION ALL
SELECT 'dead', m.order_id, m.version, m.topic, NULL, '', 0
FROM dead_messages m JOIN orders o USING (shard, order_id) WHERE o.shard = ANY ($1::smallint[]) AND o.campaign = $2
UNION ALL
SELECT 'deliveries', m.order_id, m.version, m.topic, m.at, m.outcome, m.attempts
FROM deliveries m JOIN orders o USING (shard, order_id) WHERE o.shard = ANY ($1::smallint[]) AND o.campaign = $2;
