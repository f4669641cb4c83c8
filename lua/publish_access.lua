#!lua flags=allow-oom
-- publish_access: put the copy of channels, keys and blocks where the gateways read it, unless there is a newer one.
--
-- Guarantee  G10 an older copy never takes the place of a newer one, whoever is late.
-- Cost       O(size of the copy), at most 2 commands, one round trip.
-- Caller     lua/access.py publish
--
-- KEYS[1] access  hash  `version`, `copy`
--
-- ARGV[1] version  int    of the copy, >= 0; grows with every change
-- ARGV[2] copy     bytes  as lua/access.py encodes it
--
-- Returns {code, version}
--   0 DONE   version = the one given
--   1 NEWER  version = the one that is there; nothing was written
local access = KEYS[1]
local version, copy = ARGV[1], ARGV[2]

local DONE, NEWER = 0, 1

-- Compared as numbers: they are milliseconds, far below 2^53.
local there = tonumber(redis.call('HGET', access, 'version') or -1)
if there > tonumber(version) then return { NEWER, there } end

redis.call('HSET', access, 'version', version, 'copy', copy)
return { DONE, tonumber(version) }
