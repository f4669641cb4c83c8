// Orders with Fastify and ioredis, auto-pipelining on: all calls of one turn of the event loop go out together.
import { randomUUID, timingSafeEqual } from 'node:crypto'
import { readFileSync } from 'node:fs'
import Fastify from 'fastify'
import Redis from 'ioredis'

const AUTHORIZATION = Buffer.from(`Bearer ${process.env.CHANNEL_KEY}`)
const BUYER_LIMIT = 2
const PAY_WITHIN_MS = 900_000
const SOLD_OUT = 2
const OVER_LIMIT = 3

const store = new Redis(process.env.STORE_URL, { enableAutoPipelining: true })
store.defineCommand('order', {
  numberOfKeys: 4,
  lua: readFileSync(new URL('../order.lua', import.meta.url), 'utf8')
})

const app = Fastify({ logger: false })

const schema = {
  headers: {
    type: 'object',
    required: ['idempotency-key'],
    properties: { 'idempotency-key': { type: 'string', minLength: 1, maxLength: 64 } }
  },
  body: {
    type: 'object',
    additionalProperties: false,
    required: ['buyer_id', 'items'],
    properties: {
      buyer_id: { type: 'string', minLength: 1, maxLength: 64 },
      items: {
        type: 'array',
        minItems: 1,
        maxItems: 20,
        items: {
          type: 'object',
          additionalProperties: false,
          required: ['sku', 'quantity'],
          properties: {
            sku: { type: 'string', minLength: 1, maxLength: 64 },
            quantity: { type: 'integer', minimum: 1, maximum: 1000 }
          }
        }
      },
      client_ip: { type: 'string', maxLength: 45 },
      device_id: { type: 'string', maxLength: 128 }
    }
  },
  response: {
    202: {
      type: 'object',
      properties: {
        order_id: { type: 'string' },
        status: { type: 'string' },
        status_url: { type: 'string' },
        pay_by: { type: 'string' },
        durability: { type: 'string' }
      }
    },
    '4xx': { type: 'object', properties: { error: { type: 'string' }, message: { type: 'string' } } }
  }
}

function authorized (given) {
  const found = Buffer.from(given ?? '')
  return found.length === AUTHORIZATION.length && timingSafeEqual(found, AUTHORIZATION)
}

app.post('/v1/campaigns/:campaign/orders', {
  schema,
  onRequest: (request, reply, next) => {
    if (!authorized(request.headers.authorization)) reply.code(401).send({ error: 'unauthorized' })
    else next()
  }
}, async (request, reply) => {
  const order = request.body
  const orderId = randomUUID()
  const payBy = new Date(Date.now() + PAY_WITHIN_MS).toISOString()
  const base = `{${request.params.campaign}}:`
  const lines = []
  for (const item of order.items) lines.push(item.sku, item.quantity)
  const [code, text] = await store.order(
    base + 'stock', base + 'buyers', base + 'requests', base + 'orders',
    request.headers['idempotency-key'], `${orderId} ${payBy}`, orderId, JSON.stringify(order), order.buyer_id,
    BUYER_LIMIT, ...lines
  )
  if (code === SOLD_OUT) return reply.code(409).send({ error: 'sold_out' })
  if (code === OVER_LIMIT) return reply.code(409).send({ error: 'over_limit' })
  const [id, until] = text.split(' ')
  reply.code(202)
  return { order_id: id, status: 'accepted', status_url: `/v1/orders/${id}`, pay_by: until, durability: 'fsync' }
})

await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) })
process.on('SIGTERM', async () => {
  await app.close()
  store.disconnect()
})
