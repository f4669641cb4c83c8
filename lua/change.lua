#!lua flags=allow-oom
-- change: set fields of an installed campaign (state, window, limits), never its stock.
--
-- Guarantee  G10 an older version never overwrites a newer one; the same version changes nothing.
--            Every outcome but DONE writes nothing. A sale can be paused when the store is full.
-- Cost       O(fields), 2 commands, one round trip.
-- Caller     lua/scripts.py Scripts.change
--
-- KEYS[1] meta  hash  the campaign on this shard
--
-- ARGV[1] epoch    int   the epoch the caller believes in, >= 1
-- ARGV[2] version  int   of the campaign in the ledger, >= 1
-- ARGV[3...]       text  pairs of field, value
--
-- Returns {code, version}
--   0 DONE      version as set
--   1 REPEATED  version as found, this one or a newer one
--   2 FENCED    version = 0; no campaign here, or another epoch
local meta = KEYS[1]
local epoch, version = ARGV[1], tonumber(ARGV[2])

local DONE, REPEATED, FENCED = 0, 1, 2

local found = redis.call('HMGET', meta, 'epoch', 'version')
if found[1] ~= epoch then return { FENCED, 0 } end
if tonumber(found[2]) >= version then return { REPEATED, tonumber(found[2]) } end
redis.call('HSET', meta, 'version', version, unpack(ARGV, 3))
return { DONE, version }
