-- ledger_clock: the time, as the ledger has it.
--
-- Params   none
-- Returns  one timestamp
SELECT clock_timestamp();
