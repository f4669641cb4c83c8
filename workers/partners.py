"""The partners' topics: messages over HTTP, signed, so many at a time for each partner.

Claims, sending and recording are apart: nothing in the ledger is held while a partner works, and one partner's slowness
is its own.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import groupby

from core.errors import LedgerUnavailable
from core.flood import SampledLog
from core.ids import text_of
from core.ledger.pool import ask
from core.ledger.queries import query
from core.signing import Signer
from core.trace_context import context_of
from core.tracing import Tracer
from workers.breaker import Breaker
from workers.destination import CONCURRENCY, LAST_ATTEMPT, LEASE_S, LONGEST_S, Destination, Letter, Verdict
from workers.http import Client, Target
from workers.letters import PARTNER_OF, Unsayable, body
from workers.outbox import Outbox, backoff_s

logger = logging.getLogger("rushgate.relay")
# By topic: a partner that is away has thousands.
put_off = SampledLog(logger, logging.WARNING, "messages put off", burst=5)
dead = SampledLog(logger, logging.ERROR, "messages dead", burst=5)

CONNECT_S = 2.0
EXCHANGE_S = 8.0  # connection and answer; below `grace_s`, so that a stop can wait for what is being sent
AWAY_S = 0.5  # between two tries to record while the ledger is away
CLAIM = 100  # most messages in one claim


class Partners:
    """All partners of a relay. Made in a running event loop.

    Raises: ConfigInvalid.
    """

    def __init__(
        self,
        outbox: Outbox,
        url: str,
        secrets: tuple[str, ...],
        *,
        concurrency: int = CONCURRENCY,
        exchange_s: float = EXCHANGE_S,
        last_attempt: int = LAST_ATTEMPT,
        longest_s: float = LONGEST_S,
        breaker: Callable[[], Breaker] = Breaker,
        tracer: Tracer | None = None,
    ) -> None:
        signer, target = Signer(secrets, "RUSHGATE_PARTNER_SECRETS"), Target.from_url(url, "RUSHGATE_PARTNERS_URL")
        self._outbox = outbox
        self._verdicts: list[Verdict] = []
        self._unrecorded: Counter[str] = Counter()  # by partner
        self._reported = asyncio.Event()
        self._recording = False
        self.roomier = asyncio.Event()  # set when a partner has room again
        self.delivered = 0
        self.destinations = {
            name: Destination(
                name,
                Client(target, CONNECT_S, exchange_s),
                signer,
                self._report,
                concurrency=concurrency,
                breaker=breaker(),
                last_attempt=last_attempt,
                longest_s=longest_s,
                tracer=tracer,
            )
            for name in dict.fromkeys(PARTNER_OF.values())
        }
        self._recorder = asyncio.get_running_loop().create_task(self._record())

    def topics(self) -> list[str]:
        """The topics that could be claimed now."""
        return [topic for topic, partner in PARTNER_OF.items() if self._room(partner)]

    async def serve(self, shard: int, topic: str) -> int:
        """Messages of one shard and topic are claimed, as many as there is room for, and on their way.

        Raises: LedgerUnavailable; what was claimed comes back when its lease has passed.
        """
        room = self._room(PARTNER_OF[topic])
        if not room:
            return 0
        began_s = time.monotonic()
        messages = await self._outbox.claim(shard, topic, min(room, CLAIM), LEASE_S)
        if not messages:
            return 0
        ids, versions = [m.order_id for m in messages], [m.version for m in messages]
        rows = await ask(lambda: self._outbox.ledger.fetch(query("message_facts"), shard, ids, versions))
        facts = {(r["order_id"], r["version"]): r for r in rows}
        letters = []
        for message in messages:
            known = facts.get((message.order_id, message.version))
            context = context_of(message.order_id.bytes, None if known is None else known["traceparent"])
            letter = Letter(shard, topic, message, b"", began_s, context)
            try:
                if known is None:
                    raise Unsayable(f"the order has no event {message.version}")
                letters.append(letter._replace(body=body(message, shard, topic, known)))
            except Unsayable as exc:
                last = message.attempts >= LAST_ATTEMPT
                wait_s = backoff_s(message.attempts, 1.0, LONGEST_S)
                self._report(Verdict(letter, "dead" if last else "later", str(exc), wait_s=wait_s))
        self.destinations[PARTNER_OF[topic]].put(letters)
        return len(messages)

    async def stop(self) -> None:
        """What is being sent is finished and recorded; the rest is given back."""
        await asyncio.gather(*(d.stop() for d in self.destinations.values()))
        while self._recording or self._verdicts:
            if self._recorder.done():
                break
            await asyncio.sleep(0.01)
        self._recorder.cancel()
        await asyncio.gather(self._recorder, return_exceptions=True)

    def _room(self, partner: str) -> int:
        return self.destinations[partner].room(self._unrecorded[partner])

    def _report(self, verdict: Verdict) -> None:
        self._unrecorded[PARTNER_OF[verdict.letter.topic]] += 1
        self._verdicts.append(verdict)
        self._reported.set()

    async def _record(self) -> None:
        """Verdicts are written down, all there are at a time, through every absence of the ledger."""
        while True:
            await self._reported.wait()
            self._reported.clear()
            self._recording = True
            verdicts, self._verdicts = self._verdicts, []
            for (shard, topic, what), group in groupby(sorted(verdicts, key=_kind), key=_kind):
                alike = list(group)
                while True:
                    try:
                        await self._write(shard, topic, what, alike)
                        break
                    except LedgerUnavailable as exc:
                        logger.warning("relay waits to record", extra={"why": exc.detail, "count": len(alike)})
                        await asyncio.sleep(AWAY_S)
                self._unrecorded[PARTNER_OF[topic]] -= len(alike)
            self._recording = False
            self.roomier.set()

    async def _write(self, shard: int, topic: str, what: str, alike: list[Verdict]) -> None:
        messages, texts = [v.letter.message for v in alike], [v.text for v in alike]
        said = {t for t in texts if t}
        if what == "done":
            worked_ms = [v.worked_ms for v in alike]
            outcomes = [t or "" for t in texts]
            await self._outbox.finish(shard, topic, messages, worked_ms, outcomes)
            self.delivered += len(alike)
        elif what == "dead":
            dead(topic, topic=topic, shard=shard, count=len(alike), why=min(said), **_ids(alike[0].letter))
            await self._outbox.bury(shard, topic, messages, [t or "" for t in texts])
        else:
            if said:
                put_off(topic, topic=topic, shard=shard, count=len(alike), why=min(said), **_ids(alike[0].letter))
            await self._outbox.put_off(shard, topic, messages, [v.wait_s for v in alike], texts)


def _ids(letter: Letter) -> dict[str, str]:
    """The ids of one of the orders that a log line is about."""
    order_id = letter.message.order_id.bytes
    trace_id = (letter.context or context_of(order_id, None)).trace_id
    return {"order_id": text_of(order_id), "trace_id": trace_id.hex()}


def _kind(verdict: Verdict) -> tuple[int, str, str]:
    return verdict.letter.shard, verdict.letter.topic, verdict.what


def partners_of(
    url: str, secrets: tuple[str, ...], tracer: Tracer | None = None
) -> Callable[[Outbox], Partners] | None:
    """What makes a relay's partners; None: there is no URL, their messages wait in the outbox. Raises ConfigInvalid."""
    if not url:
        return None
    Target.from_url(url, "RUSHGATE_PARTNERS_URL")
    Signer(secrets, "RUSHGATE_PARTNER_SECRETS")
    return partial(Partners, url=url, secrets=secrets, tracer=tracer)
