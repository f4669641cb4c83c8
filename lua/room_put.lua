#!lua
-- room_put: a waiting room is here as the ledger has it, and its rate is the operator's newest.
--
-- The ledger's counters run ahead of the store's. So of a server that may have lost a part, no number is given twice and
-- nobody who was admitted waits again. The numbers between are skipped: nobody's, unless the server did lose a part, and
-- known as holes, so that no line waits for them. (Not of a room that is wholly lost, nor before the draw, which they are
-- in: there they are admitted like others.)
--
-- Guarantee  G27 a room that is lost, wholly or in part, goes on with the places that buyers have.
-- Cost       O(1), at most 4 commands, one round trip.
-- Caller     lua/room.py Rooms.put
--
-- KEYS[1] room  hash  as in room.lua
-- KEYS[2] line  hash  as in room.lua
--
-- ARGV[1] id        text
-- ARGV[2] life      text  of the server that this is said to
-- ARGV[3] mode      text  auto or fixed
-- ARGV[4] rate      text  places a second, at first if it is auto
-- ARGV[5] set       int   which setting of the rate it is, 1 or more
-- ARGV[6] joined    int
-- ARGV[7] admitted  int
-- ARGV[8] lapsed    int
-- ARGV[9] seed      text  '' = not drawn
-- ARGV[10] early    int   -1 = not drawn
-- ARGV[11] ttl_ms   int   how long who was admitted lately may still order
--
-- Returns {code}
--   0 DONE  it is so
local room, line = KEYS[1], KEYS[2]
local id, life = ARGV[1], ARGV[2]

local DONE = 0
local most_holes = 32                               -- 16 of them; a line passes them sooner than a store starts so often

local r = redis.call('HMGET', room, 'id', 'life', 'set', 'joined', 'admitted', 'lapsed', 'seed', 'marks', 'early', 'holes')
local here = r[1] == id
local changed = { 'id', id, 'life', life }
local function set(field, value)
  changed[#changed + 1] = field
  changed[#changed + 1] = value
end
if not here or tonumber(ARGV[5]) > tonumber(r[3]) then
  set('mode', ARGV[3])
  set('rate', ARGV[4])
  set('set', ARGV[5])
end
if not here or r[2] ~= life then
  local function greater(field, mine, its)
    set(field, string.format('%.0f', math.max(here and tonumber(mine) or 0, tonumber(its))))
  end
  local early = tonumber(ARGV[9] ~= '' and ARGV[10] or r[9] or -1)
  local mine, its = tonumber(r[4] or 0), tonumber(ARGV[6])
  local holes = here and r[10] and cmsgpack.unpack(r[10]) or {}
  if here and its > mine and early >= 0 and early <= mine and #holes < most_holes then
    holes[#holes + 1], holes[#holes + 2] = mine, its
  end
  set('holes', cmsgpack.pack(holes))
  greater('joined', r[4], ARGV[6])
  greater('admitted', r[5], ARGV[7])
  greater('lapsed', r[6], ARGV[8])
  if not here or ARGV[9] ~= '' then
    set('seed', ARGV[9])
    set('early', ARGV[10])
  end
  if not here then
    for _, field in ipairs({ 'credit', 'ticked_us', 'turn_ms', 'pressed_ms' }) do set(field, 0) end
  end
  local marks = here and cmsgpack.unpack(r[8]) or {}
  local admitted = math.max(here and tonumber(r[5]) or 0, tonumber(ARGV[7]))
  if admitted > tonumber(marks[#marks] or 0) and admitted > tonumber(ARGV[8]) then
    -- When they were admitted is not known: they have their time from now on.
    local time = redis.call('TIME')
    local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[11])
    marks[#marks + 1], marks[#marks + 2] = math.max(until_ms, marks[#marks - 1] or 0), admitted
  end
  set('marks', cmsgpack.pack(marks))
end
if not here then redis.call('DEL', line) end
redis.call('HSET', room, unpack(changed))
return { DONE }
