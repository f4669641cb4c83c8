-- insert_orders: record a batch of accepted orders with items, first event and payment message, once per order id.
--
-- Guarantee  G4: running the same batch again changes nothing, whatever has become of the orders since.
--            A request key or sequence number that another order has is an error, never skipped silently.
--            G23: an order of an older epoch than the campaign's newest rebuild is not inserted: its hold is gone.
-- Params     parallel arrays, one element per order, 1 to 10,000 elements, sorted by shard and order id
--            ($1 to $16), then one element per line ($17 to $22):
--   $1 shards  $2 order_ids  $3 campaigns  $4 epochs  $5 seqs  $6 channels  $7 request_keys  $8 buyer_ids
--   $9 client_ips  $10 device_ids  $11 amounts  $12 currencies  $13 accepted_ms  $14 pay_by_ms  $15 ship_tos (JSON)
--   $16 state of a new order
--   $17 shards  $18 order_ids  $19 lines  $20 skus  $21 quantities  $22 prices
-- Returns    written = how many orders were inserted by THIS call, late = the ids of those that came too late
WITH late AS MATERIALIZED (
    SELECT o.shard, o.order_id
    FROM unnest($1::smallint[], $2::uuid[], $3::text[], $4::integer[]) AS o (shard, order_id, campaign, epoch)
    WHERE EXISTS (SELECT FROM rebuilds r WHERE r.shard = o.shard AND r.campaign = o.campaign AND r.epoch > o.epoch)
      AND NOT EXISTS (SELECT FROM orders w WHERE w.shard = o.shard AND w.order_id = o.order_id)
), fresh AS (
    INSERT INTO orders (shard, order_id, campaign, epoch, seq, channel, request_key, buyer_id, client_ip, device_id,
                        state, version, amount, currency, accepted_at, pay_by, ship_to)
    SELECT o.shard, o.order_id, o.campaign, o.epoch, o.seq, o.channel, o.request_key, o.buyer_id, o.client_ip,
           o.device_id, $16, 1, o.amount, o.currency, to_timestamp(o.accepted_ms / 1000.0),
           to_timestamp(o.pay_by_ms / 1000.0), o.ship_to::jsonb
    FROM unnest($1::smallint[], $2::uuid[], $3::text[], $4::integer[], $5::bigint[], $6::text[], $7::text[],
                $8::text[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::bigint[], $14::bigint[],
                $15::text[])
         AS o (shard, order_id, campaign, epoch, seq, channel, request_key, buyer_id, client_ip, device_id, amount,
               currency, accepted_ms, pay_by_ms, ship_to)
    WHERE NOT EXISTS (SELECT FROM late l WHERE l.shard = o.shard AND l.order_id = o.order_id)
    ON CONFLICT (shard, order_id) DO NOTHING
    RETURNING shard, order_id, accepted_at, channel
), lines AS (
    -- Not joined with `fresh`: the lines of an order that is there already are there too.
    INSERT INTO order_items (shard, order_id, line, sku, quantity, price)
    SELECT * FROM unnest($17::smallint[], $18::uuid[], $19::smallint[], $20::text[], $21::integer[], $22::bigint[])
                  AS n (shard, order_id, line, sku, quantity, price)
    WHERE NOT EXISTS (SELECT FROM late l WHERE l.shard = n.shard AND l.order_id = n.order_id)
    ON CONFLICT (shard, order_id, line) DO NOTHING
), events AS (
    INSERT INTO order_events (shard, order_id, version, at, action, from_state, to_state, actor)
    SELECT shard, order_id, 1, accepted_at, 'accept', NULL, $16, 'channel:' || channel FROM fresh
), messages AS (
    INSERT INTO outbox (shard, order_id, version, topic, at)
    SELECT shard, order_id, 1, 'payment', accepted_at FROM fresh
)
SELECT (SELECT count(*) FROM fresh) AS written, ARRAY(SELECT order_id FROM late) AS late;
