-- The requests of bench/wrk.py: a new buyer, request key, device and address each, and every answer counted.
--
-- Arguments: path, channel key, mark (8 hex digits, new in each run: the four in front make buyers and devices, all of
-- them request keys), seconds. After that time the connections go silent one by one as their answers come, and wrk ends
-- when the last answer is there: an order in flight at the end would be accepted and counted by nobody.
local ffi = require 'ffi'
ffi.cdef [[
  typedef struct { long s, ns; } rushgate_time;
  int clock_gettime(int clock, rushgate_time *now);
  int getpid(void);
  int kill(int pid, int signal);
]]
local C, at = ffi.C, ffi.new('rushgate_time')
local MONOTONIC, INTERRUPT = 1, 2
local threads = {}

local function mono_s()
  C.clock_gettime(MONOTONIC, at)
  return tonumber(at.s) + tonumber(at.ns) * 1e-9
end

function setup(thread) threads[#threads + 1] = thread end

local four, octet = {}, {} -- 0000 to 9999; 100 to 249, all of one width, so that every request has one length
for n = 0, 9999 do four[n] = string.format('%04d', n) end
for n = 0, 149 do octet[n] = tostring(n + 100) end

local before_key, in_key, before_buyer, before_ip, before_device, last
local seconds

function init(args)
  local path, channel_key, mark = args[1], args[2], args[3]
  seconds = tonumber(args[4])
  local short = string.sub(mark, 1, 4)
  in_key = '-4000-8000-' .. mark -- with the eight digits and `0000` behind it a UUID's 36 characters
  before_buyer = '0000\r\n\r\n{"buyer_id":"' .. short
  before_ip = '","items":[{"sku":"phone-red","quantity":1}],"client_ip":"10.'
  before_device = '","device_id":"d-' .. short .. '-'
  last = '"}'
  local body_bytes = #before_buyer - 8 + 8 + #before_ip + 11 + #before_device + 8 + #last
  before_key = 'POST ' .. path .. ' HTTP/1.1\r\nHost: ' .. wrk.headers['Host'] .. '\r\nAuthorization: Bearer ' .. channel_key
    .. '\r\nContent-Type: application/json\r\nContent-Length: ' .. body_bytes .. '\r\nIdempotency-Key: '
end

-- Global, for `done` to read them. The first request is one that wrk only looks at and does not send.
made, answered, statuses, began_s, ended_s = -1, 0, {}, 0, 0
local until_s = math.huge

function request()
  local now_s = mono_s()
  if made == 0 then began_s, until_s = now_s, now_s + seconds end
  if now_s >= until_s then -- nothing to send: this connection stays silent
    if answered == made then C.kill(C.getpid(), INTERRUPT) end
    return ''
  end
  made = made + 1
  local n = made > 0 and made or 0
  local high, low = four[math.floor(n / 10000)], four[n % 10000]
  return before_key .. high .. low .. '-0000' .. in_key .. before_buyer .. high .. low .. before_ip
    .. octet[math.floor(n / 22500) % 150] .. '.' .. octet[math.floor(n / 150) % 150] .. '.' .. octet[n % 150]
    .. before_device .. high .. low .. last
end

function response(status)
  answered = answered + 1
  statuses[status] = (statuses[status] or 0) + 1
  if answered == made then
    local now_s = mono_s()
    ended_s = now_s
    if now_s >= until_s then C.kill(C.getpid(), INTERRUPT) end
  end
end

function done(summary, latency)
  local thread = threads[1]
  local counts = {}
  for status, count in pairs(thread:get('statuses')) do
    counts[#counts + 1] = string.format('"%d":%d', status, count)
  end
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"made":%d,"answered":%d,"answers":{%s},"took_s":%.6f,"p50_us":%d,"p99_us":%d,"most_us":%d,'
      .. '"connect":%d,"read":%d,"write":%d,"timeout":%d}\n',
    thread:get('made'), thread:get('answered'), table.concat(counts, ','), thread:get('ended_s') - thread:get('began_s'),
    latency:percentile(50), latency:percentile(99), latency.max,
    errors.connect, errors.read, errors.write, errors.timeout))
end
