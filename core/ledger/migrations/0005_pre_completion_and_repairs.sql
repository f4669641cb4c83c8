ALTER TABLE orders ADD COLUMN complete_at timestamptz;

CREATE INDEX orders_complete ON orders (shard, complete_at) WHERE state = 'received';

CREATE TABLE repairs (
    shard    smallint    NOT NULL,
    order_id uuid        NOT NULL,
    what     text        NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    campaign text        NOT NULL,
    why      text        NOT NULL,
    CONSTRAINT repairs_pkey PRIMARY KEY (shard, order_id, what, at),
    CONSTRAINT repairs_what CHECK (what IN ('requeued', 'released', 'settled'))
);

CREATE TABLE alerts (
    shard    smallint    NOT NULL,
    campaign text        NOT NULL,
    kind     text        NOT NULL,
    first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    over_at  timestamptz,
    seen     bigint      NOT NULL DEFAULT 1,
    detail   text        NOT NULL,
    CONSTRAINT alerts_pkey PRIMARY KEY (shard, campaign, kind)
);
