-- 0010 pre: channels with their keys, and the block lists. Old code looks at none of them and knows the keys of its
-- settings only.
-- Lock  none: new tables.  Undo  DROP TABLE access_version, channels, channel_keys, blocks;
SET LOCAL lock_timeout = '5s';

CREATE TABLE access_version (
    shard   smallint NOT NULL,
    version bigint   NOT NULL,
    CONSTRAINT access_version_pkey PRIMARY KEY (shard),
    CONSTRAINT access_version_one CHECK (shard = 0)
);

CREATE TABLE channels (
    shard      smallint    NOT NULL,
    channel    text        NOT NULL,
    state      text        NOT NULL,
    campaigns  jsonb,
    rates      jsonb       NOT NULL DEFAULT '{}',
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
    digest     bytea       NOT NULL,
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
    value      text        NOT NULL,
    reason     text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    until_at   timestamptz,
    CONSTRAINT blocks_pkey PRIMARY KEY (shard, kind, value),
    CONSTRAINT blocks_one CHECK (shard = 0),
    CONSTRAINT blocks_kind CHECK (kind IN ('buyer', 'ip'))
);
