#!lua flags=allow-oom
-- ack: take entries that the ledger has committed off the intake.
--
-- Guarantee  G4 an entry leaves the stream and its group's pending list together; a repeated ack changes nothing.
-- Cost       O(entries), 2 commands, one round trip.
-- Caller     lua/scripts.py Scripts.ack
--
-- KEYS[1] intake  stream  of one shard
--
-- ARGV[1] group  text  consumer group
-- ARGV[2...]     text  entry ids, 1 to 1,000
--
-- Returns int: how many entries were still there.
local intake, group = KEYS[1], ARGV[1]

redis.call('XACK', intake, group, unpack(ARGV, 2))
return redis.call('XDEL', intake, unpack(ARGV, 2))
