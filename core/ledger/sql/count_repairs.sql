-- count_repairs: how many repairs of each sort were made lately. For operators: it spans shards.
--
-- Params   $1 how long ago at most, seconds
-- Returns  what, repairs
SELECT what, count(*) AS repairs FROM repairs
WHERE at > clock_timestamp() - make_interval(secs => $1) GROUP BY what ORDER BY what;
