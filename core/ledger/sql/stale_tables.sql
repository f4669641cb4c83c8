-- stale_tables: tables of ours that have grown or changed by half since they were analysed, and by more than a handful.
--
-- Params   $1 names of our tables text[]
-- Returns  name, as an identifier; changed: rows since then
SELECT quote_ident(s.relname) AS name, s.n_mod_since_analyze AS changed
FROM pg_stat_user_tables s
WHERE s.schemaname = current_schema() AND s.relname = ANY ($1::text[]) AND s.n_mod_since_analyze > 200 + greatest(s.n_live_tup, 0) / 2
ORDER BY s.relname;
