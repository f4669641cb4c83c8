-- repeat_messages: messages for the store are in the outbox again, and the repair is journalled with it, once: not while
-- the message is there, and not if the order had this repair, for the same reason, a short while ago. Dead messages come
-- to life.
--
-- Params   $1 shard  $2 topic  $3 what the journal calls it  $4 campaign  $5 a short while, seconds, then parallel
--          arrays, 1 to 1,000 elements: $6 order_ids uuid[]  $7 versions  $8 whys text[]
-- Returns  order_id of each that is back by THIS call
WITH wanted AS (
    SELECT w.order_id, w.version, w.why FROM unnest($6::uuid[], $7::integer[], $8::text[]) AS w (order_id, version, why)
    WHERE NOT EXISTS (SELECT FROM repairs r
                      WHERE r.shard = $1 AND r.order_id = w.order_id AND r.what = $3 AND r.why = w.why
                        AND r.at > clock_timestamp() - make_interval(secs => $5))
), back AS (
    INSERT INTO outbox (shard, order_id, version, topic, at)
    SELECT $1, order_id, version, $2, clock_timestamp() FROM wanted
    ON CONFLICT (shard, order_id, version, topic) DO NOTHING
    RETURNING order_id
), living AS (
    DELETE FROM dead_messages d USING wanted w
    WHERE d.shard = $1 AND d.order_id = w.order_id AND d.version = w.version AND d.topic = $2
), journal AS (
    INSERT INTO repairs (shard, order_id, what, campaign, why)
    SELECT $1, w.order_id, $3, $4, w.why FROM wanted w JOIN back USING (order_id)
)
SELECT order_id FROM back;
