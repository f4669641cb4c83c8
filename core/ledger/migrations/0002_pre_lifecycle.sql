-- 0002 pre: what the life of an order needs: reasons, deliveries, payments, messages that are tried again.
-- Lock  ACCESS EXCLUSIVE on orders for the index build; before the first sale it is instant.
-- Undo  DROP the new tables, index and columns. Old workers ignore all of it.

ALTER TABLE order_events ADD COLUMN reason text NOT NULL DEFAULT '';

ALTER TABLE outbox
    ADD COLUMN due_at timestamptz NOT NULL DEFAULT now(), -- next try; while a relay has it: the end of its lease
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN error text;                                -- of the last attempt

CREATE INDEX outbox_due ON outbox (shard, topic, due_at);

CREATE INDEX orders_due ON orders (shard, pay_by) WHERE state = 'accepted';

CREATE TABLE deliveries (
    shard     smallint    NOT NULL,
    order_id  uuid        NOT NULL,
    version   integer     NOT NULL, -- of the order when the message came to be
    topic     text        NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    waited_ms bigint      NOT NULL, -- from its coming to be to the attempt that did it
    worked_ms bigint      NOT NULL, -- of that attempt
    attempts  integer     NOT NULL,
    outcome   text        NOT NULL,
    CONSTRAINT deliveries_pkey PRIMARY KEY (shard, order_id, version, topic)
);

CREATE TABLE payments (
    shard      smallint    NOT NULL,
    payment_no text        NOT NULL,
    order_id   uuid        NOT NULL,
    status     text        NOT NULL,
    amount     bigint      NOT NULL, -- minor units
    currency   text        NOT NULL,
    paid_at    timestamptz NOT NULL, -- the payment centre's clock
    at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT payments_pkey PRIMARY KEY (shard, payment_no),
    CONSTRAINT payments_status CHECK (status IN ('paid', 'failed'))
);

CREATE INDEX payments_order ON payments (shard, order_id);

CREATE TABLE deployment (
    shard  smallint NOT NULL, -- always 0: there is one row
    shards integer  NOT NULL, -- of this deployment, fixed for its life
    id     uuid     NOT NULL, -- tells this ledger's campaigns from another one's of the same name
    CONSTRAINT deployment_pkey PRIMARY KEY (shard),
    CONSTRAINT deployment_one CHECK (shard = 0)
);
