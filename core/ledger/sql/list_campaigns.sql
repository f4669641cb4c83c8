-- list_campaigns: all campaigns.
--
-- Params   none
-- Returns  campaign, state, version
SELECT campaign, state, version FROM campaigns ORDER BY campaign;
