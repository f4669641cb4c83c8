#!lua flags=allow-oom
-- sign: a process says that it lives, and what it does.
--
-- Guarantee  G14 who works is seen in a store that is full, too: one field is replaced by one of about its length.
-- Cost       O(1), 2 commands, one round trip.
-- Caller     lua/registry.py
--
-- KEYS[1] processes  hash  id of the process -> its sign of life, JSON
--
-- ARGV[1] id    text
-- ARGV[2] sign  text  JSON, lua/registry.py Sign
--
-- Returns the store's time, ms.
local processes, id, sign = KEYS[1], ARGV[1], ARGV[2]

redis.call('HSET', processes, id, sign)
local time = redis.call('TIME')
return time[1] * 1000 + math.floor(time[2] / 1000)
