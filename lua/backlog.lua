#!lua flags=no-writes
-- backlog: how much waits in the intake of one shard, and since when.
--
-- Guarantee  G14 what the gateways judge by is of one instant of the store.
-- Cost       O(orders of 2 entries), at most 4 commands, one round trip. Entries are batches, so the orders are
--            counted by their numbers: those of the first and of the last entry say how many lie between.
-- Caller     lua/scripts.py Scripts.backlog
--
-- KEYS[1] intake  stream  of one shard
--
-- Returns {entries, orders, age_ms, sale, first}
--   entries  int   how many
--   orders   int   how many are in them; if several campaigns share the shard, not less than entries
--   age_ms   int   how long ago the first entry was made; 0 = none
--   sale     text  campaign and epoch of the first entry, '' = none
--   first    int   number of its first order
local intake = KEYS[1]

local entries = redis.call('XLEN', intake)
local oldest = redis.call('XRANGE', intake, '-', '+', 'COUNT', 1)[1]
if not oldest then return { 0, 0, 0, '', 0 } end
local newest = redis.call('XREVRANGE', intake, '+', '-', 'COUNT', 1)[1]
local time = redis.call('TIME')

-- An entry that is none of ours has no numbers, and counts as one order.
local function read(entry)
  local fields = entry[2]
  local sale, first, count = string.match(fields[2] or '', '^%d+|([^|]*|%d+)|%d+|%d+|(%d+)|?(%d*)$')
  -- One of version 1 has a field per order instead (core/wire.py).
  return sale or '', tonumber(first or 0), tonumber(count) or math.max(1, math.floor(#fields / 2) - 1)
end
local sale, first = read(oldest)
local last_sale, last, size = read(newest)
local orders = entries
if sale ~= '' and sale == last_sale then orders = math.max(entries, last + size - first) end

local age_ms = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(oldest[1], '^%d+'))
return { entries, orders, math.max(0, age_ms), sale, first }
