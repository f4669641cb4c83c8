#!lua flags=no-writes
-- audit: one consistent reading of a campaign on a shard.
--
-- Guarantee  G5 all numbers are of one instant of the store.
-- Cost       O(SKUs + moves), 8 commands, one round trip; holds, requests and limits are counted, not read.
-- Caller     lua/scripts.py Scripts.audit
--
-- KEYS[1] meta      hash
-- KEYS[2] stock     hash
-- KEYS[3] requests  hash
-- KEYS[4] holds     hash
-- KEYS[5] moves     hash
-- KEYS[6] intake    stream
-- KEYS[7] used      hash
--
-- Returns {now_ms, meta, stock, requests, holds, moves, intake, used}
--   now_ms              the store's clock
--   meta, stock, moves  flat lists of field, value
--   requests, holds     how many fields
--   intake              how many entries
--   used                how many fields
local time = redis.call('TIME')
return {
  time[1] * 1000 + math.floor(time[2] / 1000),
  redis.call('HGETALL', KEYS[1]),
  redis.call('HGETALL', KEYS[2]),
  redis.call('HLEN', KEYS[3]),
  redis.call('HLEN', KEYS[4]),
  redis.call('HGETALL', KEYS[5]),
  redis.call('XLEN', KEYS[6]),
  redis.call('HLEN', KEYS[7]),
}
