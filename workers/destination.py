"""One partner as a relay sees it: a bounded queue, so many messages at a time, a breaker, and the verdict on each."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from core.signing import Signer
from core.trace_context import TraceContext
from core.tracing import Tracer
from workers.breaker import Breaker
from workers.http import Answer, Client, NoAnswer
from workers.letters import message_id
from workers.outbox import Message, backoff_s
from workers.traces import PartnerCall

CONCURRENCY = 32
QUEUE = 4  # messages that are claimed and not yet settled, per place of the concurrency
LEASE_S = 60.0  # after so long another relay takes over
LAST_ATTEMPT = 12  # about five minutes after the first
LONGEST_S = 120.0  # between two attempts
# Not about this message: a wrong secret, URL or clock of ours (a signature that is too old), or a partner in a hurry.
TRY_AGAIN = (401, 403, 404, 408, 425, 429)


class Letter(NamedTuple):
    """A claimed message, ready to be sent."""

    shard: int
    topic: str
    message: Message
    body: bytes
    claimed_s: float  # monotonic
    context: TraceContext | None = None  # of the order's trace


class Verdict(NamedTuple):
    """What became of a letter: `what` is done, later or dead."""

    letter: Letter
    what: str
    text: str | None = None  # the outcome, the error, the reason; later and None = it was not tried
    worked_ms: int = 0
    wait_s: float = 0.0


class Destination:
    """Sends the letters of one partner. Used from one event loop."""

    def __init__(
        self,
        partner: str,
        client: Client,
        signer: Signer,
        report: Callable[[Verdict], None],
        *,
        concurrency: int = CONCURRENCY,
        breaker: Breaker | None = None,
        last_attempt: int = LAST_ATTEMPT,
        longest_s: float = LONGEST_S,
        tracer: Tracer | None = None,
    ) -> None:
        """`report` gets the verdict on each letter, once."""
        self.partner = partner
        self.breaker = breaker or Breaker()
        self._client = client
        self._signer = signer
        self._report = report
        self._concurrency = concurrency
        self._last_attempt = last_attempt
        self._longest_s = longest_s
        self._tracer = tracer
        self._queue: deque[Letter] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.sent = 0  # letters, answered or not
        self.sending_s = 0.0  # of all of them, side by side

    def room(self, unrecorded: int) -> int:
        """How many letters it could take now; `unrecorded` of its verdicts are not in the ledger yet."""
        if self._stopping or not self.breaker.ready():
            return 0
        taken = len(self._queue) + len(self._tasks) + unrecorded
        most = 1 if self.breaker.is_open else QUEUE * self._concurrency
        return max(0, most - taken)

    def put(self, letters: list[Letter]) -> None:
        """The letters will be sent; the caller has asked `room`."""
        self._queue.extend(letters)
        for _ in range(min(len(letters), self._concurrency - len(self._tasks))):
            task = asyncio.get_running_loop().create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """What is being sent is finished, the rest is given back unsent."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._client.close()

    async def _work(self) -> None:
        while self._queue:
            letter = self._queue.popleft()
            if time.monotonic() - letter.claimed_s > LEASE_S - self._client.exchange_s:
                self._report(Verdict(letter, "later"))  # its lease would end while it is sent
            elif self._stopping or not self.breaker.take():
                self._report(Verdict(letter, "later", wait_s=self.breaker.wait_s()))
            else:
                began_s = time.monotonic()
                verdict = await self._traced(letter)
                self.sent += 1
                self.sending_s += time.monotonic() - began_s
                self._report(verdict)

    async def _traced(self, letter: Letter) -> Verdict:
        """As `_send`; a message of an order whose trace is recorded has a span of its own, told to the partner."""
        if self._tracer is None or letter.context is None or not letter.context.sampled:
            return await self._send(letter)
        call = PartnerCall(self._tracer, letter.context, self.partner, letter.topic)
        verdict: Verdict | None = None
        try:
            verdict = await self._send(letter._replace(context=call.context))
        finally:
            call.over(letter.message, "broken off" if verdict is None else verdict.what, verdict and verdict.text)
        return verdict

    async def _send(self, letter: Letter) -> Verdict:
        headers = self._signer.sign(message_id(letter.message, letter.topic), int(time.time()), letter.body)
        if letter.context is not None:
            headers["traceparent"] = letter.context.traceparent
        began_s = time.monotonic()
        try:
            answer = await self._client.post(f"/{self.partner}/{letter.topic}", headers, letter.body)
        except NoAnswer as exc:
            self.breaker.failed()
            return self._later(letter, str(exc), 0.0)
        except BaseException:
            self.breaker.failed()  # whatever it was, a probe must not be waited for
            raise
        worked_ms = int((time.monotonic() - began_s) * 1000)
        if 200 <= answer.status < 300:
            self.breaker.succeeded()
            return Verdict(letter, "done", f"answered {answer.status}", worked_ms)
        said = _said(answer)
        if 400 <= answer.status < 500 and answer.status not in TRY_AGAIN:
            self.breaker.succeeded()  # it reads what it gets
            return Verdict(letter, "dead", said)
        self.breaker.failed()
        return self._later(letter, said, answer.retry_after_s)

    def _later(self, letter: Letter, why: str, retry_after_s: float) -> Verdict:
        attempts = letter.message.attempts
        if attempts >= self._last_attempt:
            return Verdict(letter, "dead", f"attempt {attempts} was the last: {why}")
        wait_s = backoff_s(attempts, random.random(), self._longest_s)  # noqa: S311 - spreads, hides nothing
        return Verdict(letter, "later", why, wait_s=max(wait_s, min(retry_after_s, self._longest_s)))


def _said(answer: Answer) -> str:
    words = answer.body[:200].decode("utf-8", "replace").strip()
    return f"answered {answer.status}" + (f": {words}" if words else "")
