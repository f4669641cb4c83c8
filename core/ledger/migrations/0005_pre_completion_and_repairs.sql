-- 0005 pre: orders are received and completed by time; what the reconcile worker mends and finds; dead orders given up stay on record.
-- Lock  ACCESS EXCLUSIVE on orders and dead_letters for an instant each; SHARE on orders while the (empty) index is built.
-- Undo  DROP TABLE alerts, repairs; ALTER TABLE dead_letters DROP COLUMN dropped_at,
--       DROP COLUMN replayed_at; DROP INDEX orders_timer;
--       ALTER TABLE orders DROP COLUMN timer_at;
SET LOCAL lock_timeout = '5s';

ALTER TABLE orders ADD COLUMN timer_at timestamptz;

CREATE INDEX orders_timer ON orders (shard, state, timer_at) WHERE timer_at IS NOT NULL;

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

ALTER TABLE dead_letters ADD COLUMN dropped_at timestamptz, ADD COLUMN replayed_at timestamptz;
