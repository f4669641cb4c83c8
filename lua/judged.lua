#!lua flags=allow-oom
-- judged: note how many orders of a campaign a run of the server began with, before any are taken on it.
--
-- Guarantee  G24 witness.lua tells a number that this run has given again from one that it found. Nothing is written
--            where the campaign is out of service, nor twice for one run.
-- Cost       O(1), at most 2 commands, one round trip.
-- Caller     lua/witness.py
--
-- KEYS[1] meta  hash  `judged` = 'run:seq', a blank after each, the last 16 of them, the latest last; a rebuild
--                     drops them
--
-- ARGV[1] run  text  run_id of the server
--
-- Returns 1 if it was noted, else 0.
local meta, run = KEYS[1], ARGV[1]

local m = redis.call('HMGET', meta, 'epoch', 'seq', 'judged')
local list = m[3] or ''
if not m[1] or string.find(list, run .. ':', 1, true) then return 0 end

local _, runs = string.gsub(list, ' ', '')
if runs >= 16 then list = string.sub(list, string.find(list, ' ', 1, true) + 1) end
redis.call('HSET', meta, 'judged', list .. run .. ':' .. (m[2] or 0) .. ' ')
return 1
