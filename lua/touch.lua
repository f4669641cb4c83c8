#!lua flags=allow-oom
-- touch: write something, so that WAIT on this connection asks for all that the store wrote before.
--
-- Guarantee  G23 what the caller is told is confirmed by replicas, also what another connection wrote earlier.
-- Cost       O(1), 1 command; sent with what it follows, no round trip of its own.
-- Caller     lua/connection.py
--
-- KEYS[1] touch  string  of the shard; always empty
--
-- Returns the status OK.
return redis.call('SET', KEYS[1], '')
