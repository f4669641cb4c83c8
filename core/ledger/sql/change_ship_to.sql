-- change_ship_to: the order goes elsewhere; the same address again changes nothing. The first one stays on record: it is part of the
-- request's fingerprint.
--
-- Params   $1 shard  $2 order_id  $3 ship_to (JSON)
-- Returns  a row if it was another one
UPDATE orders SET ship_to = $3::text::jsonb, first_ship_to = coalesce(first_ship_to, ship_to, 'null'::jsonb)
WHERE shard = $1 AND order_id = $2 AND ship_to IS DISTINCT FROM $3::text::jsonb RETURNING 1;
