-- 0003 pre: refunds, units that come back after they were sold, and messages that nobody could deliver.
-- Lock  ACCESS EXCLUSIVE on stock_moves for the constraint, instant.  Undo  DROP TABLE refunds, dead_messages.

CREATE TABLE refunds (
    shard     smallint    NOT NULL,
    order_id  uuid        NOT NULL,
    refund_no text        NOT NULL, -- ref_<version of the order>: of the outbox message `refund` of that version
    amount    bigint      NOT NULL, -- minor units
    currency  text        NOT NULL,
    state     text        NOT NULL,
    reason    text        NOT NULL DEFAULT '',
    lines     jsonb,                -- of a refund in part: [{"sku","quantity","amount"}]
    at        timestamptz NOT NULL DEFAULT now(),
    done_at   timestamptz,
    CONSTRAINT refunds_pkey PRIMARY KEY (shard, order_id, refund_no),
    CONSTRAINT refunds_amount CHECK (amount > 0),
    CONSTRAINT refunds_state CHECK (state IN ('requested', 'approved', 'rejected', 'done'))
);

CREATE TABLE dead_messages (
    shard    smallint    NOT NULL,
    order_id uuid        NOT NULL,
    version  integer     NOT NULL,
    topic    text        NOT NULL,
    at       timestamptz NOT NULL, -- when the message came to be
    dead_at  timestamptz NOT NULL DEFAULT now(),
    attempts integer     NOT NULL,
    reason   text        NOT NULL,
    CONSTRAINT dead_messages_pkey PRIMARY KEY (shard, order_id, version, topic)
);

ALTER TABLE stock_moves
    DROP CONSTRAINT stock_moves_kind,
    ADD CONSTRAINT stock_moves_kind CHECK (kind IN ('open', 'restock', 'close', 'return'));
