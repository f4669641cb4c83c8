-- list_processes: the names of the connections to this database, each once.
--
-- Params     none
-- Returns    application_name, e.g. `rushgate-expiry-1234-ab12cd34`, in no order.
SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()
