-- The ledger as all migrations leave it; a test compares the two.

CREATE TABLE campaigns (
    shard      smallint    NOT NULL, -- the campaign's first shard
    campaign   text        NOT NULL,
    epoch      integer     NOT NULL,
    version    integer     NOT NULL,
    state      text        NOT NULL,
    spec       jsonb       NOT NULL, -- core.model.CampaignSpec, its SKUs as first defined
    loosest    jsonb       NOT NULL, -- the loosest limits it had since it was opened: what an order may have used
    changed_at timestamptz NOT NULL DEFAULT now(),
    back_to       text,             -- in `recovering`: the state to come back to
    rebuilt_by    text,             -- in `recovering`: who rebuilds it in the store, and until when nobody else may
    rebuilt_until timestamptz,
    CONSTRAINT campaigns_pkey PRIMARY KEY (shard, campaign),
    CONSTRAINT campaigns_state CHECK (state IN ('draft', 'opening', 'open', 'paused', 'closed', 'recovering')),
    CONSTRAINT campaigns_back_to CHECK ((state = 'recovering') = (back_to IS NOT NULL))
);

CREATE TABLE campaign_skus (
    shard    smallint NOT NULL,
    campaign text     NOT NULL,
    sku      text     NOT NULL,
    position smallint NOT NULL,
    name     text     NOT NULL,
    stock    bigint   NOT NULL, -- units at the opening
    price    bigint   NOT NULL, -- minor units
    CONSTRAINT campaign_skus_pkey PRIMARY KEY (shard, campaign, sku),
    CONSTRAINT campaign_skus_stock CHECK (stock >= 0),
    CONSTRAINT campaign_skus_price CHECK (price >= 0)
);

CREATE TABLE stock_moves (
    shard    smallint    NOT NULL, -- the shard whose stock changes
    campaign text        NOT NULL,
    move_id  text        NOT NULL,
    sku      text        NOT NULL,
    kind     text        NOT NULL,
    units    bigint      NOT NULL, -- negative = withdrawn
    state    text        NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT stock_moves_pkey PRIMARY KEY (shard, campaign, move_id),
    CONSTRAINT stock_moves_kind CHECK (kind IN ('open', 'restock', 'close', 'return')),
    CONSTRAINT stock_moves_state CHECK (state IN ('pending', 'applied', 'refused'))
);

CREATE TABLE orders (
    shard       smallint    NOT NULL,
    order_id    uuid        NOT NULL,
    campaign    text        NOT NULL,
    epoch       integer     NOT NULL,
    seq         bigint      NOT NULL, -- 1, 2, 3 ... without a gap per shard, campaign and epoch
    channel     text        NOT NULL,
    request_key text        NOT NULL,
    buyer_id    text        NOT NULL,
    client_ip   text        NOT NULL,
    device_id   text        NOT NULL,
    state       text        NOT NULL,
    version     integer     NOT NULL,
    amount      bigint      NOT NULL, -- minor units
    currency    text        NOT NULL,
    accepted_at timestamptz NOT NULL, -- the store's clock
    pay_by      timestamptz NOT NULL,
    ship_to     jsonb,
    timer_at    timestamptz,          -- when time moves it on from its state; NULL = it does not
    first_ship_to jsonb,              -- NULL = ship_to never changed; JSON null = there was none at first
    CONSTRAINT orders_pkey PRIMARY KEY (shard, order_id),
    CONSTRAINT orders_request_key UNIQUE (shard, campaign, channel, request_key),
    CONSTRAINT orders_seq_key UNIQUE (shard, campaign, epoch, seq),
    CONSTRAINT orders_amount CHECK (amount >= 0)
);

CREATE INDEX orders_due ON orders (shard, pay_by) WHERE state = 'accepted';

CREATE INDEX orders_timer ON orders (shard, state, timer_at) WHERE timer_at IS NOT NULL;

CREATE INDEX orders_buyer ON orders (buyer_id, shard, order_id);

CREATE INDEX orders_waiting ON orders (shard, campaign, state)
    WHERE state IN ('allocating', 'refund_pending', 'refunded');

CREATE TABLE order_items (
    shard    smallint NOT NULL,
    order_id uuid     NOT NULL,
    line     smallint NOT NULL,
    sku      text     NOT NULL,
    quantity integer  NOT NULL,
    price    bigint   NOT NULL, -- of one unit, minor units
    CONSTRAINT order_items_pkey PRIMARY KEY (shard, order_id, line),
    CONSTRAINT order_items_quantity CHECK (quantity > 0)
);

CREATE TABLE order_events (
    shard      smallint    NOT NULL,
    order_id   uuid        NOT NULL,
    version    integer     NOT NULL, -- of the order after this event
    at         timestamptz NOT NULL,
    action     text        NOT NULL,
    from_state text,                 -- NULL = the order begins
    to_state   text        NOT NULL,
    actor      text        NOT NULL,
    reason     text        NOT NULL DEFAULT '',
    CONSTRAINT order_events_pkey PRIMARY KEY (shard, order_id, version)
);

CREATE TABLE outbox (
    shard    smallint    NOT NULL,
    order_id uuid        NOT NULL,
    version  integer     NOT NULL, -- of the order when the message came to be; with the topic, its stable id
    topic    text        NOT NULL,
    at       timestamptz NOT NULL,
    due_at   timestamptz NOT NULL DEFAULT now(), -- next try; while a relay has it: the end of its lease
    attempts integer     NOT NULL DEFAULT 0,
    error    text,                               -- of the last attempt
    CONSTRAINT outbox_pkey PRIMARY KEY (shard, order_id, version, topic)
);

CREATE INDEX outbox_due ON outbox (shard, topic, due_at);

CREATE TABLE dead_letters (
    shard    smallint    NOT NULL,
    entry_id text        NOT NULL, -- of the intake
    place    integer     NOT NULL, -- of the order in its entry; -1 = the whole entry
    campaign text,
    epoch    integer,
    seq      bigint,
    order_id uuid,
    reason   text        NOT NULL,
    payload  bytea       NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    dropped_at  timestamptz,          -- given up by an operator
    replayed_at timestamptz,          -- going back into the intake; never both
    CONSTRAINT dead_letters_pkey PRIMARY KEY (shard, entry_id, place)
);

CREATE INDEX dead_letters_order ON dead_letters (shard, order_id);

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
    request_no text,                -- req_<version of the request>; NULL = nobody asked, it was due
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

CREATE TABLE repairs (
    shard    smallint    NOT NULL,
    order_id uuid        NOT NULL,
    what     text        NOT NULL, -- what the reconcile worker did with the order's hold, or message
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    campaign text        NOT NULL,
    why      text        NOT NULL,
    CONSTRAINT repairs_pkey PRIMARY KEY (shard, order_id, what, at),
    CONSTRAINT repairs_what CHECK (what IN ('requeued', 'released', 'settled', 'repeated'))
);

CREATE TABLE alerts (
    shard    smallint    NOT NULL, -- the campaign's first shard
    campaign text        NOT NULL,
    kind     text        NOT NULL, -- what an audit found: oversold, lost, ...
    first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    over_at  timestamptz,          -- since when audits do not find it any more; NULL = it stands
    seen     bigint      NOT NULL DEFAULT 1,
    detail   text        NOT NULL,
    CONSTRAINT alerts_pkey PRIMARY KEY (shard, campaign, kind)
);

CREATE TABLE rebuilds (
    shard    smallint    NOT NULL, -- of the campaign; orders of an epoch before the newest one here come too late
    campaign text        NOT NULL,
    epoch    integer     NOT NULL, -- that began with it
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    made_by  text        NOT NULL,
    why      text        NOT NULL,
    done_at  timestamptz,          -- when the store had it; NULL = broken off, or not yet
    base     bigint,               -- the greatest sequence number known then: the next order has the next one
    orders   bigint,               -- installed
    held     bigint,               -- units
    sold     bigint,               -- units
    gap      bigint,               -- sequence numbers up to `base` that nobody knew
    missing  text,                 -- these as ranges, `17, 20-25`; the first ones if there are many
    CONSTRAINT rebuilds_pkey PRIMARY KEY (shard, campaign, epoch)
);

CREATE TABLE access_version (
    shard   smallint NOT NULL, -- always 0: there is one row
    version bigint   NOT NULL, -- of all that channels, keys and blocks hold: greater with every change
    CONSTRAINT access_version_pkey PRIMARY KEY (shard),
    CONSTRAINT access_version_one CHECK (shard = 0)
);

CREATE TABLE channels (
    shard      smallint    NOT NULL, -- always 0, as of the next two tables: few rows, read as a whole
    channel    text        NOT NULL,
    state      text        NOT NULL,
    campaigns  jsonb,                -- names that it may sell; NULL = all
    rates      jsonb       NOT NULL DEFAULT '{}', -- its own rate limits: kind -> text
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT channels_pkey PRIMARY KEY (shard, channel),
    CONSTRAINT channels_one CHECK (shard = 0),
    CONSTRAINT channels_state CHECK (state IN ('active', 'revoked'))
);

CREATE TABLE channel_keys (
    shard      smallint    NOT NULL,
    key_id     text        NOT NULL,
    channel    text        NOT NULL,
    kind       text        NOT NULL,
    digest     bytea       NOT NULL, -- SHA-256 of the key; the key itself is nowhere
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT channel_keys_pkey PRIMARY KEY (shard, key_id),
    CONSTRAINT channel_keys_one CHECK (shard = 0),
    CONSTRAINT channel_keys_kind CHECK (kind IN ('bearer', 'signing')),
    CONSTRAINT channel_keys_digest CHECK (octet_length(digest) = 32)
);

CREATE TABLE blocks (
    shard      smallint    NOT NULL,
    kind       text        NOT NULL,
    value      text        NOT NULL, -- a buyer as channels name them; an address or a network in its one spelling
    reason     text        NOT NULL, -- for operators; callers are not told
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    until_at   timestamptz,          -- NULL = until it is taken away
    CONSTRAINT blocks_pkey PRIMARY KEY (shard, kind, value),
    CONSTRAINT blocks_one CHECK (shard = 0),
    CONSTRAINT blocks_kind CHECK (kind IN ('buyer', 'ip'))
);

CREATE TABLE rooms (
    shard    smallint         NOT NULL, -- the campaign's first shard
    campaign text             NOT NULL,
    room_id  text             NOT NULL, -- places are signed with it
    mode     text             NOT NULL,
    rate     double precision NOT NULL, -- admitted a second; of an automatic one the last that was noted
    setting  integer          NOT NULL DEFAULT 1, -- how often an operator has set the rate, from 1
    joined   bigint           NOT NULL DEFAULT 0, -- this and the next two: of a moment to come, so that a store which
    admitted bigint           NOT NULL DEFAULT 0, -- was lost goes on behind all that it had given out
    lapsed   bigint           NOT NULL DEFAULT 0,
    seed     text             NOT NULL DEFAULT '', -- of the draw; '' = not drawn
    early    bigint           NOT NULL DEFAULT -1, -- places that were drawn
    noted_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT rooms_pkey PRIMARY KEY (shard, campaign),
    CONSTRAINT rooms_mode CHECK (mode IN ('auto', 'fixed'))
);

CREATE TABLE order_traces (        -- only of orders that were given a trace by their caller, or are recorded
    shard       smallint NOT NULL,
    order_id    uuid     NOT NULL,
    traceparent text     NOT NULL, -- W3C Trace Context: the span that later ones of the order are below
    CONSTRAINT order_traces_pkey PRIMARY KEY (shard, order_id)
);
