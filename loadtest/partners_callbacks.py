"""What the partners send to the gateway: each callback at its time, again until taken, in a bounded queue."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random

import msgspec

from loadtest.client import Pool
from loadtest.exchange import Answer, Target
from loadtest.partners_options import PartnersOptions
from loadtest.partners_signing import PartnerSigner

RETRY_AFTER_S_MAX = 30.0

wall_s = time.time


class Callback(msgspec.Struct, kw_only=True):
    """One call to the gateway.

    Args:
        effect: what it tells, as recorded among the order's effects when it is first sent.
        message_id: the same in every attempt.
        fields: of the body; `time_field` is added with the time of the first sending.
        due_s: wall clock; before it nothing is sent. Of a callback that follows another: seconds after that one.
        twice: send it two times at once.
        then: follows when this one has been taken.
        channel_key: send this instead of a signature: it is the buyer who calls, through a channel.
        final: statuses beside 2xx that end it.
    """

    partner: str
    topic: str
    order_id: str
    effect: str
    path: str
    message_id: str = ""
    fields: dict[str, object] = {}
    time_field: str = ""
    due_s: float
    twice: bool = False
    then: "Callback | None" = None
    channel_key: str = ""
    final: tuple[int, ...] = ()
    body: bytes = b""
    attempts: int = 0

    def size(self) -> int:
        """How many sendings it stands for: itself, its twin and those that follow."""
        return 1 + self.twice + (self.then.size() if self.then else 0)


class Courier:
    """Sends callbacks. `note(callback, event)`: `sent`, `taken`, `refused`, `given_up`, per attempt or at its end.

    `begun(callback)` is called once per callback, right before its first sending.
    """

    def __init__(
        self,
        options: PartnersOptions,
        signers: dict[str, PartnerSigner],
        note: Callable[[Callback, str], None],
        begun: Callable[[Callback], None],
    ) -> None:
        self.pending = 0
        self._options = options
        self._signers = signers
        self._note = note
        self._begun = begun
        self._target = Target.from_url(options.gateway_url)
        self._loop = asyncio.get_running_loop()
        self._pool: Pool[Callback] = Pool(self._target, options.connections, options.timeout_s, self._done)
        self._jitter = Random(options.seed)  # noqa: S311  spreads repeats, guards nothing
        self._stopped = False

    @property
    def due(self) -> int:
        """Callbacks whose time has come and that are not answered: what the gateway is behind."""
        return self._pool.waiting + self._pool.in_flight

    def room_for(self, callbacks: list[Callback]) -> bool:
        """Whether the queue has a place for all of them and for what follows them."""
        return self.pending + sum(c.size() for c in callbacks) <= self._options.pending_max

    def post(self, callback: Callback) -> None:
        """Send it when it is due. The caller has asked `room_for`."""
        self.pending += callback.size()
        self._at(callback, callback.due_s)

    async def close(self) -> None:
        """Send nothing more; what is pending is forgotten."""
        self._stopped = True
        await self._pool.close()

    def _at(self, callback: Callback, due_s: float) -> None:
        delay_s = due_s - wall_s()
        if delay_s > 0:
            # The loop's clock is another one: asked again, so that nothing is early by the wall clock.
            self._loop.call_later(delay_s, self._at, callback, due_s)
        else:
            self._send(callback)

    def _send(self, callback: Callback) -> None:
        if self._stopped:
            return
        if not callback.attempts:
            if callback.time_field:
                now = datetime.fromtimestamp(wall_s(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                callback.fields = {**callback.fields, callback.time_field: now}
            callback.body = msgspec.json.encode(callback.fields)
            self._begun(callback)
            if callback.twice:
                callback.twice = False
                twin = msgspec.structs.replace(callback, then=None)
                self._submit(twin)
        self._submit(callback)

    def _submit(self, callback: Callback) -> None:
        callback.attempts += 1
        body = callback.body
        if callback.channel_key:
            proof = b"authorization: Bearer %b\r\n" % callback.channel_key.encode()
        else:
            proof = self._signers[callback.partner].headers(callback.message_id, int(wall_s()), body)
        head = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        self._note(callback, "sent")
        self._pool.submit(
            callback, head % (callback.path.encode(), self._target.authority.encode(), proof, len(body)) + body
        )

    def _done(self, callback: Callback, answer: Answer) -> None:
        if self._stopped:
            return
        if 200 <= answer.status < 300 or answer.status in callback.final:
            self._note(callback, "taken" if answer.status < 300 else "refused")
            self.pending -= 1
            if callback.then is not None:
                self._at(callback.then, wall_s() + callback.then.due_s)
        elif callback.attempts >= self._options.attempts:
            self._note(callback, "given_up")
            self.pending -= callback.size()
        else:
            longest_s = min(
                self._options.backoff_ms * 2 ** min(callback.attempts - 1, 20), self._options.backoff_max_ms
            )
            wait_s = longest_s / 1_000 * self._jitter.uniform(0.5, 1.0)
            wait_s = max(wait_s, min(answer.retry_after_s or 0.0, RETRY_AFTER_S_MAX))
            self._loop.call_later(wait_s, self._send, callback)
