-- campaign_heads: what of each campaign that was opened can be known without reading its definition as a whole.
--
-- Params   none
-- Returns  campaign, state, version, epoch, order_type, spread
SELECT campaign, state, version, epoch, coalesce(spec ->> 'order_type', '') AS order_type,
    CASE jsonb_typeof(spec -> 'spread') WHEN 'number' THEN (spec ->> 'spread')::numeric::int ELSE 1 END AS spread
FROM campaigns WHERE state NOT IN ('draft', 'opening') ORDER BY campaign;
