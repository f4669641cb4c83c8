#!lua
-- rate: decide a batch of requests against their rate limits, as if they had come one after another at this instant.
--
-- GCRA: a limit lets `burst` requests through at once, and one more for each `interval` that passes. Of a name it keeps
-- the time at which its whole burst is there again; a name whose time has passed is as good as unknown. A request that
-- one limit refuses counts for none.
--
-- Names stand in two hashes, each with its greatest time in the field `#`. What is counted goes into `young`; once all
-- times of `old` have passed, it is dropped and `young` takes its place. So what is over is never searched for, and no
-- name stays much longer than twice the longest burst after its last request.
--
-- Guarantee  G28 no name is let through more often than burst + time / interval, however many come at one instant.
--            Nothing is written for a request that is refused.
-- Cost       O(requests * limits), at most 9 commands, one round trip.
-- Caller     lua/rate.py
--
-- KEYS[1] young     hash  name -> time at which its burst is whole, us of the store's clock; `#` -> the greatest
-- KEYS[2] old       hash  likewise
-- KEYS[3] channels  hash  likewise, without `#`: as many as there are channels
--
-- ARGV[1] requests  int    how many, 1 to 512
-- ARGV[2] limits    bytes  msgpack, 1 to 4 of {interval in us, burst, of each request its name, '' = none}: first those
--                          whose names are the campaign's, then those whose names are channels. No name is in two
-- ARGV[3] own       int    how many of the limits are the campaign's
--
-- Returns bytes, of each request 10: refused (1), the limit that this is about (1, from 1, 0 = it has none), and
--   not refused  how many more there could be at once (4), ms until the burst is whole (4): of the tightest limit
--   refused      0 (4), ms until it would be let through (4): of the limit that lasts longest
local young, old, channels = KEYS[1], KEYS[2], KEYS[3]
local count, packed, own = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local limits = cmsgpack.unpack(packed)

local longest_us, grace_ms = 3600000000, 60000      -- burst there is; that the hashes outlive their last name

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Each different name once, those of the campaign first.
local names, name_count, own_count = {}, 0, 0
local places, limit_of = {}, {}                     -- name -> place in names -> its limit
local at = {}                                       -- limit -> request -> place of its name
for l, limit in ipairs(limits) do
  local places_here = {}
  for r, name in ipairs(limit[3]) do
    if name ~= '' then
      local place = places[name]
      if not place then
        name_count = name_count + 1
        place = name_count
        places[name], names[place], limit_of[place] = place, name, limit
      end
      places_here[r] = place
    end
  end
  at[l] = places_here
  if l <= own then own_count = name_count end
end

local in_young = redis.call('HMGET', young, '#', unpack(names, 1, own_count))
local in_old = redis.call('HMGET', old, '#', unpack(names, 1, own_count))
local of_channels = name_count > own_count and redis.call('HMGET', channels, unpack(names, own_count + 1)) or {}

-- Of each name: when its burst is whole (now, if that has passed), what may still be used, and requests let through.
local whole, room, passed = {}, {}, {}
for p = 1, name_count do
  local known = p > own_count and of_channels[p - own_count] or in_young[p + 1] or in_old[p + 1]
  local limit = limit_of[p]
  local most = limit[1] * limit[2]
  -- More than a burst ahead it cannot be, unless the clock was set back or the limit is a smaller one now.
  whole[p] = math.min(math.max(tonumber(known or 0), now), now + most)
  room[p], passed[p] = most - (whole[p] - now), 0
end

local answers = {}
for r = 1, count do
  local refused, wait, tight, more = 0, 0, 0, 0
  for l = 1, #limits do
    local p = at[l][r]
    if p then
      local interval = limits[l][1]
      local missing = (passed[p] + 1) * interval - room[p]
      if missing > wait then
        refused, wait = l, missing
      elseif missing <= 0 then
        local left = math.floor(-missing / interval + 0.001) -- what is whole but for a rounding error is whole
        if tight == 0 or left < more then tight, more = l, left end
      end
    end
  end
  if refused > 0 then
    answers[r] = struct.pack('>BBI4I4', 1, refused, 0, math.ceil(wait / 1000))
  else
    for l = 1, #limits do
      local p = at[l][r]
      if p then passed[p] = passed[p] + 1 end
    end
    local p = tight > 0 and at[tight][r]
    local until_whole = p and whole[p] - now + passed[p] * limits[tight][1] or 0
    answers[r] = struct.pack('>BBI4I4', 0, tight, more, math.ceil(until_whole / 1000))
  end
end

local last = tonumber(in_young[1] or 0)
local old_last = tonumber(in_old[1] or 0)
local over = old_last <= now or old_last > now + longest_us -- so far ahead only if the clock was set back
if over then last = 0 end
local fresh, fresh_channels = {}, {}
for p = 1, name_count do
  if passed[p] > 0 then
    -- Rounded up: what is lost is less than a microsecond a call, and nobody gets more than the limit.
    local new = math.ceil(whole[p] + passed[p] * limit_of[p][1])
    local list = p > own_count and fresh_channels or fresh
    list[#list + 1], list[#list + 2] = names[p], string.format('%.0f', new)
    if p <= own_count then last = math.max(last, new) end
  end
end
if #fresh > 0 then
  if over then
    redis.call('UNLINK', old)
    if in_young[1] then redis.call('RENAME', young, old) end
  end
  redis.call('HSET', young, '#', string.format('%.0f', last), unpack(fresh))
  redis.call('PEXPIREAT', young, string.format('%.0f', math.ceil(last / 1000) + grace_ms))
end
if #fresh_channels > 0 then redis.call('HSET', channels, unpack(fresh_channels)) end
return table.concat(answers)
