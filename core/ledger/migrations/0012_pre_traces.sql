-- 0012 pre: the traces of orders that were given one, or are recorded. Old code neither writes nor reads it.
-- Lock  none on tables that are there.
-- Undo  DROP TABLE order_traces.
SET LOCAL lock_timeout = '5s';

CREATE TABLE order_traces (
    shard       smallint NOT NULL,
    order_id    uuid     NOT NULL,
    traceparent text     NOT NULL,
    CONSTRAINT order_traces_pkey PRIMARY KEY (shard, order_id)
);
