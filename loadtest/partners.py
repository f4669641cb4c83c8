"""The partners of a shop, played by one HTTP server, for tests and demonstrations.

Payment centre, warehouse, provisioning, billing, notification and a channel's webhook. No money is moved, and
`/control` asks nobody for a password.

    POST /{partner}/{topic}   a signed message; idempotent by webhook-id
    PUT  /control/{partner}   change a partner's conduct; /control/buyers: what buyers do
    GET  /control             conduct and counts;  /control/effects?order_id=  what was done for an order
    GET  /control/records     every message that came and every callback that was made, by their ids
"""

import asyncio
import socket
from random import Random
from urllib.parse import parse_qs

import msgspec

from loadtest.partners_callbacks import Callback, Courier, wall_s
from loadtest.partners_http import Connection, Request
from loadtest.partners_options import EVERY, PARTNERS, Buyers, Conduct, PartnersOptions
from loadtest.partners_records import Effect, Memory, PartnerTally
from loadtest.partners_signing import BadSignature, PartnerSigner
from loadtest.partners_work import REPORTS, Message, callbacks_of, spoken_of

BACKLOG = 4_096

DONE, REPEATED = b'{"status":"done"}', b'{"status":"repeated"}'

_decode = msgspec.json.Decoder(Message).decode
_encode = msgspec.json.encode


def _error(why: str) -> bytes:
    return _encode({"error": why})


class Partners:
    """All partners. Made in a running event loop; `handle` answers a request, `close` ends it.

    Raises:
        ValueError: a secret or the gateway's URL is none.
    """

    def __init__(self, options: PartnersOptions) -> None:
        self.buyers = options.buyers
        self.conduct = {name: options.conduct.get(name, Conduct()) for name in PARTNERS}
        self.tallies = {name: PartnerTally() for name in PARTNERS}
        self.memory = Memory(options.remember)
        self._options = options
        self._signers = {n: PartnerSigner(options.secrets.get(n, options.secrets.get(EVERY, []))) for n in PARTNERS}
        # One for each: how many messages the others get changes nothing in a partner's luck.
        self._dice = {n: Random(f"{options.seed}:{n}") for n in PARTNERS}  # noqa: S311  failures, no secrets
        self._loop = asyncio.get_running_loop()
        self.courier = Courier(options, self._signers, self._note, self._begun)

    async def close(self) -> None:
        await self.courier.close()

    def handle(self, request: Request, connection: Connection) -> None:
        """Lead a request to its answer."""
        path, _, query = request.path.partition("?")
        partner, _, topic = path.lstrip("/").partition("/")
        if partner == "control":
            connection.reply(*self._control(request.method, topic, query, request.body))
        elif partner not in self.tallies:
            connection.reply(404, _error(f"no such partner; there are {', '.join(PARTNERS)}"))
        elif request.method != b"POST":
            connection.reply(405, _error("messages are sent by POST"))
        else:
            self._receive(partner, topic, request, connection)

    def _receive(self, partner: str, topic: str, request: Request, connection: Connection) -> None:
        conduct, tally = self.conduct[partner], self.tallies[partner]
        if conduct.away:
            tally.away += 1
            connection.reply(503, _error("away"))
            return
        try:
            message_id = self._signers[partner].verify(request.headers, request.body, wall_s())
            message = _decode(request.body)
            if (message.message_id, message.topic) != (message_id, topic):
                raise msgspec.ValidationError("message_id and topic must be those of the header and the path")
            if REPORTS[partner] and topic not in REPORTS[partner]:
                raise msgspec.ValidationError(f"topic: {partner} knows {', '.join(REPORTS[partner])}")
        except BadSignature as exc:
            tally.rejected += 1
            connection.reply(401, _error(str(exc)))
            return
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            tally.rejected += 1
            connection.reply(400, _error(str(exc)))
            return
        tally.of(topic).received += 1
        money = spoken_of(message)
        self.memory.receive(partner, topic, message_id, message.order_id, money.amount, money.refund_no)
        wait_ms = conduct.latency_ms
        if conduct.jitter_ms:
            wait_ms += self._dice[partner].uniform(-conduct.jitter_ms, conduct.jitter_ms)
        if wait_ms > 0:
            self._loop.call_later(wait_ms / 1_000, self._work, partner, message, connection)
        else:
            self._work(partner, message, connection)

    def _work(self, partner: str, message: Message, connection: Connection) -> None:
        """Nothing is awaited between the look-up of the id and its being remembered: a repeat cannot slip in."""
        conduct, tally, dice = self.conduct[partner], self.tallies[partner].of(message.topic), self._dice[partner]
        if conduct.failure and dice.random() < conduct.failure:
            tally.failed += 1
            connection.reply(500, _error("failed before anything was done"))
            return
        answer = REPEATED
        if self.memory.knows(partner, message.message_id):
            tally.repeated += 1
        else:
            now_s = wall_s()
            try:
                callbacks = callbacks_of(
                    partner,
                    message,
                    self._options,
                    self.buyers,
                    now_s,
                    lambda: conduct.duplicate > 0 and dice.random() < conduct.duplicate,
                )
            except msgspec.DecodeError as exc:
                tally.failed += 1
                connection.reply(422, _error(f"data: {exc}"))
                return
            if not self.courier.room_for(callbacks):
                tally.full += 1
                connection.reply(503, _error("too many callbacks are pending"))
                return
            self.memory.remember(partner, message.message_id)
            self.memory.act(partner, message.message_id)
            self.memory.add_effect(message.order_id, Effect(partner, message.topic, message.message_id, now_s))
            for callback in callbacks:
                self.courier.post(callback)
            tally.done += 1
            answer = DONE
        if conduct.lost_answer and dice.random() < conduct.lost_answer:
            tally.lost += 1
            connection.hold(conduct.lost_hold_ms / 1_000)
        else:
            connection.reply(200, answer)

    def _note(self, callback: Callback, event: str) -> None:
        tally = self.tallies[callback.partner].of(callback.topic)
        if event in ("sent", "taken"):
            amount = callback.fields.get("amount", 0)
            told = (callback.message_id, amount if isinstance(amount, int) else 0, event == "taken")
            self.memory.report(callback.partner, callback.effect, callback.order_id, *told)
        if event == "sent":
            tally.callbacks_sent += 1
        elif event == "taken":
            tally.callbacks_taken += 1
        elif event == "refused":
            tally.callbacks_refused += 1
        else:
            tally.callbacks_given_up += 1

    def _begun(self, callback: Callback) -> None:
        effect = Effect(callback.partner, callback.effect, callback.message_id, wall_s())
        self.memory.add_effect(callback.order_id, effect)

    def _control(self, method: bytes, what: str, query: str, body: bytes) -> tuple[int, bytes]:
        if method == b"GET" and not what:
            return 200, _encode(self._state())
        if method == b"GET" and what == "records":
            return 200, _encode(self.memory.records())
        if method == b"GET" and what == "effects":
            order_id = "".join(parse_qs(query).get("order_id", []))
            return 200, _encode({"order_id": order_id, "effects": self.memory.effects(order_id)})
        if method != b"PUT" or (what != "buyers" and what not in self.conduct):
            return 404, _error("GET /control, GET /control/effects?order_id=, PUT /control/{partner}, /control/buyers")
        try:
            changes = msgspec.json.decode(body, type=dict[str, object])
            if what == "buyers":
                self.buyers = msgspec.convert(msgspec.structs.asdict(self.buyers) | changes, Buyers)
                return 200, _encode(self.buyers)
            self.conduct[what] = msgspec.convert(msgspec.structs.asdict(self.conduct[what]) | changes, Conduct)
            return 200, _encode(self.conduct[what])
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            return 422, _error(str(exc))

    def _state(self) -> dict[str, object]:
        return {
            "pending_callbacks": self.courier.pending,
            "due_callbacks": self.courier.due,
            "remembered": len(self.memory),
            "buyers": self.buyers,
            "partners": {
                name: {"conduct": self.conduct[name], **msgspec.structs.asdict(self.tallies[name])} for name in PARTNERS
            },
        }


async def serve_partners(options: PartnersOptions, sock: socket.socket) -> None:
    """Serve on `sock`, which is bound and best listens already, until cancelled.

    Then nothing more is sent and all connections are closed.

    Raises:
        ValueError: a secret or the gateway's URL is none.
    """
    partners = Partners(options)
    connections: set[Connection] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(partners.handle, connections), sock=sock, backlog=BACKLOG
    )
    try:
        await server.serve_forever()
    finally:
        server.close()
        for connection in list(connections):
            connection.drop()
        await partners.close()
