-- 0009 pre: campaigns that the store lost are rebuilt under a new epoch. Old code takes `recovering` for a state that it
-- does not know and refuses to change such a campaign; rebuild none until all processes are new.
-- Lock  ACCESS EXCLUSIVE on campaigns and orders for an instant each, catalog only, no rewrite.
-- Undo  DROP TABLE rebuilds; ALTER TABLE orders DROP COLUMN first_ship_to; ALTER TABLE campaigns DROP COLUMN back_to,
--       DROP COLUMN rebuilt_by, DROP COLUMN rebuilt_until; and the check of 0001 again.
SET LOCAL lock_timeout = '5s';

ALTER TABLE campaigns DROP CONSTRAINT campaigns_state;
ALTER TABLE campaigns
    ADD COLUMN back_to       text,
    ADD COLUMN rebuilt_by    text,
    ADD COLUMN rebuilt_until timestamptz,
    ADD CONSTRAINT campaigns_state CHECK (state IN ('draft', 'opening', 'open', 'paused', 'closed', 'recovering')),
    ADD CONSTRAINT campaigns_back_to CHECK ((state = 'recovering') = (back_to IS NOT NULL));

ALTER TABLE orders ADD COLUMN first_ship_to jsonb;

CREATE TABLE rebuilds (
    shard    smallint    NOT NULL,
    campaign text        NOT NULL,
    epoch    integer     NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    made_by  text        NOT NULL,
    why      text        NOT NULL,
    done_at  timestamptz,
    base     bigint,
    orders   bigint,
    held     bigint,
    sold     bigint,
    gap      bigint,
    missing  text,
    CONSTRAINT rebuilds_pkey PRIMARY KEY (shard, campaign, epoch)
);
