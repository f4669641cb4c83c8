-- 0011 pre: the waiting rooms of campaigns. Old code has none, and cannot read a campaign that says `admission`.
-- Lock  none: a new table.  Undo  DROP TABLE rooms;
SET LOCAL lock_timeout = '5s';

CREATE TABLE rooms (
    shard    smallint         NOT NULL,
    campaign text             NOT NULL,
    room_id  text             NOT NULL,
    mode     text             NOT NULL,
    rate     double precision NOT NULL,
    setting  integer          NOT NULL DEFAULT 1,
    joined   bigint           NOT NULL DEFAULT 0,
    admitted bigint           NOT NULL DEFAULT 0,
    lapsed   bigint           NOT NULL DEFAULT 0,
    seed     text             NOT NULL DEFAULT '',
    early    bigint           NOT NULL DEFAULT -1,
    noted_at timestamptz      NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT rooms_pkey PRIMARY KEY (shard, campaign),
    CONSTRAINT rooms_mode CHECK (mode IN ('auto', 'fixed'))
);
