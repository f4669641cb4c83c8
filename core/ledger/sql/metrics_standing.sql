-- metrics_standing: what stands in the small tables, counted. For operators: it spans shards.
--
-- Params   none
-- Returns  what (dead_message, dead_letter, alert, campaign), name (topic, '', kind, state), number
SELECT 'dead_message' AS what, topic AS name, count(*) AS number FROM dead_messages GROUP BY topic
UNION ALL
SELECT 'dead_letter', '', count(*) FROM dead_letters d WHERE dropped_at IS NULL
    AND NOT EXISTS (SELECT FROM orders o WHERE o.shard = d.shard AND o.order_id = d.order_id)
UNION ALL
SELECT 'alert', kind, count(*) FROM alerts WHERE over_at IS NULL GROUP BY kind
UNION ALL
SELECT 'campaign', state, count(*) FROM campaigns GROUP BY state;
