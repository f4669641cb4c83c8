-- 0004 pre: what a refund was called when it was requested; approved, it bears the number of its message.
-- Lock  ACCESS EXCLUSIVE on refunds, catalog only, no rewrite.  Undo  ALTER TABLE refunds DROP COLUMN request_no;
ALTER TABLE refunds ADD COLUMN request_no text; -- req_<version of the request>; NULL = nobody asked, it was due
