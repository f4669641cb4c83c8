-- Orders in nginx: cjson, and lua-nginx-redis with its pool of kept connections.
local cjson = require "cjson.safe"
local redis = require "nginx.redis"

local BUYER_LIMIT, PAY_WITHIN_S = 2, 900
local SOLD_OUT, OVER_LIMIT = 2, 3
local POOL, IDLE_MS, TIMEOUT_MS = 256, 60000, 10000

local ngx, type, sub, find = ngx, type, string.sub, string.find

local function is_text(value, most) return type(value) == "string" and #value >= 1 and #value <= most end

local function is_text_or_nil(value, most) return value == nil or is_text(value, most) end

-- What is wrong with an order, nil if nothing is; else its lines as the script wants them.
local function lines_of(order)
  if type(order) ~= "table" or not is_text(order.buyer_id, 64) then return nil, "buyer_id" end
  if not is_text_or_nil(order.client_ip, 45) then return nil, "client_ip" end
  if not is_text_or_nil(order.device_id, 128) then return nil, "device_id" end
  local items = order.items
  if type(items) ~= "table" or #items < 1 or #items > 20 then return nil, "items" end
  for name in pairs(order) do
    if name ~= "buyer_id" and name ~= "items" and name ~= "client_ip" and name ~= "device_id" then
      return nil, name
    end
  end
  local lines = {}
  for i = 1, #items do
    local item = items[i]
    if type(item) ~= "table" or not is_text(item.sku, 64) then return nil, "sku" end
    local quantity = item.quantity
    if type(quantity) ~= "number" or quantity % 1 ~= 0 or quantity < 1 or quantity > 1000 then
      return nil, "quantity"
    end
    for name in pairs(item) do
      if name ~= "sku" and name ~= "quantity" then return nil, name end
    end
    lines[2 * i - 1], lines[2 * i] = item.sku, quantity
  end
  return lines
end

local function answer(status, body)
  ngx.status = status
  ngx.header["Content-Length"] = #body
  ngx.print(body)
end

local function refuse(status, why) return answer(status, '{"error":"' .. why .. '"}') end

local function hex(bytes)
  return (string.gsub(bytes, ".", function(c) return string.format("%02x", string.byte(c)) end))
end

local function new(script_path)
  local file = assert(io.open(script_path))
  local script = file:read("*a")
  file:close()
  local sha = hex(ngx.sha1_bin(script))
  local password, host, port = string.match(os.getenv("STORE_URL"), "^redis://:([^@]*)@([^:]+):(%d+)/")
  local authorization = "Bearer " .. os.getenv("CHANNEL_KEY")
  port = tonumber(port)

  local function decide(...)
    local store = redis:new()
    store:set_timeout(TIMEOUT_MS)
    local ok, wrong = store:connect(host, port)
    if not ok then return nil, wrong end
    if store:get_reused_times() == 0 then
      ok, wrong = store:auth(password)
      if not ok then return nil, wrong end
    end
    local reply
    reply, wrong = store:evalsha(sha, 4, ...)
    if not reply and find(wrong, "NOSCRIPT", 1, true) then reply, wrong = store:eval(script, 4, ...) end
    if not reply then
      store:close()
      return nil, wrong
    end
    store:set_keepalive(IDLE_MS, POOL)
    return reply
  end

  return function()
    local var = ngx.var
    if var.http_authorization ~= authorization then return refuse(401, "unauthorized") end
    local key = var.http_idempotency_key
    if not is_text(key, 64) then return refuse(422, "idempotency-key") end
    ngx.req.read_body()
    local body = ngx.req.get_body_data()
    local order = body and cjson.decode(body)
    local lines, wrong = lines_of(order)
    if not lines then return refuse(422, wrong) end

    local id = var.request_id
    id = sub(id, 1, 8) .. "-" .. sub(id, 9, 12) .. "-4" .. sub(id, 14, 16) .. "-8" .. sub(id, 18, 20) .. "-" .. sub(id, 21)
    local until_s = ngx.now() + PAY_WITHIN_S
    local pay_by = os.date("!%Y-%m-%dT%H:%M:%S", until_s) .. string.format(".%03dZ", until_s * 1000 % 1000)
    local base = "{" .. var[1] .. "}:"
    local reply, failed = decide(
      base .. "stock", base .. "buyers", base .. "requests", base .. "orders",
      key, id .. " " .. pay_by, id, body, order.buyer_id, BUYER_LIMIT, unpack(lines))
    if not reply then
      ngx.log(ngx.ERR, "the store: ", failed)
      return refuse(503, "store")
    end
    local code, text = reply[1], reply[2]
    if code == SOLD_OUT then return refuse(409, "sold_out") end
    if code == OVER_LIMIT then return refuse(409, "over_limit") end
    id = sub(text, 1, 36)
    return answer(202, '{"order_id":"' .. id .. '","status":"accepted","status_url":"/v1/orders/' .. id
      .. '","pay_by":"' .. sub(text, 38) .. '","durability":"fsync"}')
  end
end

return { new = new }
