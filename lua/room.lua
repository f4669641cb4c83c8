#!lua
-- room: the waiting room of a campaign goes on by the store's clock, and a batch of buyers joins its line.
--
-- Places are numbers, 1, 2, 3 ... in the order of joining. Those who joined before the opening are drawn by lot: the first
-- call after the opening fixes the seed of the draw and how many take part, and nobody knows the seed before.
--
-- Numbers that were skipped (room_put.lua) cost the line no time: they are passed at once when it has come to them.
--
-- Guarantee  G26 no two buyers of a room have one number, a buyer who joins again has the same one; of those who wait no
--            more are admitted than the rate allows, in the order of their places. STALE and LOST write nothing.
-- Cost       O(buyers), at most 9 commands, one round trip.
-- Caller     lua/room.py Rooms.room
--
-- KEYS[1] meta  hash  the campaign on its first shard: state, opens_ms, closes_ms, version
-- KEYS[2] room  hash  id, life, mode, rate, set (which setting of the rate it is), joined, admitted, lapsed, credit,
--                     ticked_us, turn_ms, pressed_ms, seed, early, marks, holes
-- KEYS[3] line  hash  digest of a buyer (12 bytes) -> number
--
-- ARGV[1] id       text  of the room that the caller knows
-- ARGV[2] life     text  of the server that the caller knows
-- ARGV[3] ttl_ms   int   how long who is admitted may order
-- ARGV[4] sells    int   1 = units are on sale, 0 = none are: nobody is admitted to an empty shop; 2 = the caller only
--                         wants to look, and the room does not go on
-- ARGV[5] pressed  int   1 = more waits behind the caller than should
-- ARGV[6] seed     text  drawn by the caller for this call
-- ARGV[7...]       pairs of a digest, and a number that it may be given a new one for, 0 = none; 0 to 500 pairs
--
-- Returns {code, now_ms, version, phase, opens_ms, joined, admitted, lapsed, early, seed, mode, rate, turn, marks, holes, numbers}
--   0 READY  all follows
--   1 STALE  no such room here, or it is not known whether this server has all of it: nothing else is meant
--   2 LOST   no campaign here: nothing else is meant
--   phase     0 before its window, 1 in it, 2 paused, 3 closed
--   joined, admitted, lapsed  numbers given; places up to which buyers were admitted, and of whom the time is over
--   early     how many were drawn by lot, -1 = not drawn yet; seed likewise, ''
--   rate      text, places a second
--   turn      1 = this caller has the turn to write the room into the ledger, once a second
--   marks     flat list of ms, admitted: who was admitted beyond the mark before may order until ms
--   holes     flat list of from, to: the numbers above from up to to were skipped, and nobody was told one of them, unless
--             the server has lost a part
--   numbers   one a pair, 0 = the line is full
local meta, room, line = KEYS[1], KEYS[2], KEYS[3]
local id, life, ttl_ms, pressed = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[5] == '1'
local sells, looks = ARGV[4] == '1', ARGV[4] == '2'

local READY, STALE, LOST = 0, 1, 2
local before, open, paused, closed = 0, 1, 2, 3     -- phases
local step_us, gap_us, turn_every_ms = 100000, 1000000, 1000
local auto_step, auto_least, auto_most = 200, 10, 100000
local most_buyers, kept_ms = 2000000, 604800000

local m = redis.call('HMGET', meta, 'epoch', 'state', 'opens_ms', 'closes_ms', 'version')
if not m[1] then return { LOST } end
local r = redis.call('HMGET', room, 'id', 'life', 'mode', 'rate', 'joined', 'admitted', 'lapsed', 'credit', 'ticked_us',
  'turn_ms', 'pressed_ms', 'seed', 'early', 'marks', 'holes')
if r[1] ~= id or r[2] ~= life then return { STALE } end
local mode, rate = r[3], tonumber(r[4])
local joined, admitted, lapsed, credit = tonumber(r[5]), tonumber(r[6]), tonumber(r[7]), tonumber(r[8])
local turn_ms, pressed_ms, seed, early = tonumber(r[10]), tonumber(r[11]), r[12], tonumber(r[13])
local marks = cmsgpack.unpack(r[14])
local holes = r[15] and cmsgpack.unpack(r[15]) or {}

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local phase = open
if m[2] == 'closed' or now_ms >= tonumber(m[4]) then phase = closed
elseif m[2] ~= 'open' then phase = paused
elseif now_ms < tonumber(m[3]) then phase = before end

local changed, n = {}, 0
local function set(field, value)
  changed[n + 1], changed[n + 2] = field, value
  n = n + 2
end
local function whole(number) return string.format('%.0f', number) end

if phase == open and early < 0 and not looks then
  seed, early = ARGV[6], joined
  set('seed', seed)
  set('early', early)
end
if pressed then
  pressed_ms = now_ms
  set('pressed_ms', whole(now_ms))
end

-- At most ten times a second, whoever calls. A clock that was set, or a time in which nobody called, is worth a second.
local ticked_us = tonumber(r[9])
local passed_us = ticked_us > 0 and now_us - ticked_us or -1
local turn = 0
if not looks and (passed_us >= step_us or passed_us < 0) then
  passed_us = math.max(0, math.min(passed_us, gap_us))
  set('ticked_us', whole(now_us))
  while marks[1] and marks[1] <= now_ms do
    lapsed = math.max(lapsed, marks[2])
    table.remove(marks, 1)
    table.remove(marks, 1)
  end
  -- A rate of 0 admits nobody, not even for what was saved up before.
  if phase == open and sells and rate > 0 then
    credit = credit + rate * passed_us / 1000000
    local places, reach = math.floor(credit), admitted
    credit = credit - places
    while reach < joined do
      if holes[1] and reach >= holes[1] then
        reach = math.max(reach, holes[2])
        table.remove(holes, 1)
        table.remove(holes, 1)
        set('holes', cmsgpack.pack(holes))
      elseif places > 0 then
        local step = math.min(places, (holes[1] or joined) - reach)
        places, reach = places - step, reach + step
      else
        break
      end
    end
    -- Of a line that is empty nothing is saved up but one place.
    credit = math.min(credit + places, 1)
    if reach > admitted then
      admitted = reach
      -- Few marks for any rate: who is admitted in the same 32nd of the time has it until the same moment.
      local until_ms = (math.floor(now_ms * 32 / ttl_ms) + 1) * ttl_ms / 32 + ttl_ms
      until_ms = math.ceil(until_ms)
      if marks[#marks - 1] ~= until_ms then marks[#marks + 1] = until_ms else marks[#marks] = nil end
      marks[#marks + 1] = admitted
    end
  end
  if now_ms - turn_ms >= turn_every_ms or now_ms < turn_ms then
    turn = 1
    if mode == 'auto' and phase == open then
      if pressed or (pressed_ms > turn_ms and pressed_ms <= now_ms) then rate = math.max(auto_least, rate / 2)
      elseif sells and joined > admitted then rate = math.min(auto_most, rate + auto_step) end
      set('rate', string.format('%.6g', rate))
    end
    set('turn_ms', whole(now_ms))
  end
  set('admitted', admitted)
  set('lapsed', lapsed)
  set('credit', string.format('%.6f', credit))
  set('marks', cmsgpack.pack(marks))
end

local numbers, buyers = {}, {}
for i = 7, #ARGV, 2 do buyers[#buyers + 1] = ARGV[i] end
local new, new_n = {}, 0
if #buyers > 0 then
  local known, here = redis.call('HMGET', line, unpack(buyers)), {}
  local room_left = most_buyers - redis.call('HLEN', line)
  for i, buyer in ipairs(buyers) do
    local number = here[buyer] or known[i]
    if not number or (number == ARGV[6 + 2 * i] and not here[buyer]) then
      if not number and room_left <= 0 then
        number = 0
      else
        if not number then room_left = room_left - 1 end
        joined = joined + 1
        number = whole(joined)
        here[buyer] = number
        new[new_n + 1], new[new_n + 2] = buyer, number
        new_n = new_n + 2
      end
    end
    numbers[i] = tonumber(number)
  end
end

-- The counter goes first: a crash of the second write would leave numbers that nobody has, never one that two have.
if new_n > 0 then set('joined', joined) end
if n > 0 then redis.call('HSET', room, unpack(changed)) end
if new_n > 0 then redis.call('HSET', line, unpack(new)) end
if turn == 1 and phase < closed then
  local until_ms = whole(tonumber(m[4]) + kept_ms)
  redis.call('PEXPIREAT', room, until_ms)
  redis.call('PEXPIREAT', line, until_ms)
end
return { READY, now_ms, tonumber(m[5]), phase, tonumber(m[3]), joined, admitted, lapsed, early, seed, mode,
  string.format('%.6g', rate), turn, marks, holes, numbers }
