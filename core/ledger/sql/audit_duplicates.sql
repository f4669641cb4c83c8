-- audit_duplicates: orders beyond the first of a request key, on one shard. The unique key forbids them; this looks.
--
-- Params   $1 shard  $2 campaign
-- Returns  duplicated
SELECT coalesce(sum(n - 1), 0)::bigint AS duplicated
FROM (SELECT count(*) AS n FROM orders WHERE shard = $1 AND campaign = $2
      GROUP BY channel, request_key HAVING count(*) > 1) AS repeated;
