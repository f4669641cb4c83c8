"""More orders than the store takes: refused at once or after their time, and never asked of it."""

import asyncio
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.ledger.migrate import migrate
from core.settings import Settings
from ops.desk import connect_ledger
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore
from tests.e2e.support import KEYS, Client, Part, Reply, Wire, until
from tests.support import eventually, fresh

ROOM = 40  # RUSHGATE_QUEUE_ORDERS
QUEUE_MS = 300
STORE_TIMEOUT_S = 60.0  # no time limit ends what these tests see


class Site:
    """A store and a ledger, and gateways with settings of their own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.store = EmbeddedStore(data)
        self.ledger = EmbeddedLedger(data)

    async def start(self) -> None:
        store_url, dsn = await asyncio.gather(self.store.start(), self.ledger.start())
        connection = await connect_ledger(Settings(ledger_dsn=dsn))
        await migrate(connection)
        await connection.close()
        self.env = {
            **KEYS, "RUSHGATE_STORE_URL": store_url, "RUSHGATE_LEDGER_DSN": dsn, "RUSHGATE_PORT": "0",
            "RUSHGATE_STORE_TIMEOUT_S": str(STORE_TIMEOUT_S), "RUSHGATE_QUEUE_ORDERS": str(ROOM),
        }  # fmt: skip

    async def stop(self) -> None:
        await self.store.stop()
        await self.ledger.stop()

    @contextmanager
    def gateway(self, queue_ms: int) -> Iterator[Client]:
        env = self.env | {"RUSHGATE_QUEUE_MS": str(queue_ms)}
        part = Part(self.data / f"{fresh('part')}.log", ["gateway"], env)
        try:
            client = part.gateway()
            until(lambda: client.call("GET", "/readyz").status == 200)
            yield client
        finally:
            part.end()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The store does nothing for the while."""
        pid = self.store.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="rushgate-test-") as folder:
        found = Site(Path(folder))
        try:
            asyncio.run(found.start())
            yield found
        finally:
            asyncio.run(found.stop())


class Offered:
    """Orders that were sent at once, each on a connection of its own."""

    def __init__(self, client: Client, campaign: str) -> None:
        self._client, self._campaign = client, campaign
        self.tasks: list[asyncio.Task[Reply]] = []
        self._wires: list[Wire] = []

    def send(self, count: int) -> None:
        for n in range(len(self.tasks), len(self.tasks) + count):
            wire = Wire(self._client)
            self._wires.append(wire)
            self.tasks.append(asyncio.create_task(wire.order(self._campaign, f"k{n}", f"b{n}")))

    def told(self) -> Counter[str]:
        """What was answered so far; of a 503 its detail."""
        replies = [t.result() for t in self.tasks if t.done()]
        return Counter(str(r.status) if r.status != 503 else f"{r.code}: {r.json['detail']}" for r in replies)

    async def close(self) -> None:
        await asyncio.gather(*(wire.close() for wire in self._wires))


FULL = "overloaded: as many requests wait as can be served in time"
LATE = "overloaded: the request waited as long as one may"


async def test_more_than_may_wait_are_refused_while_the_store_stands_still(site: Site) -> None:
    with site.gateway(queue_ms=60_000) as client:
        campaign = await asyncio.to_thread(client.sale, {"red": 1_000})
        offered = Offered(client, campaign)
        assert (await asyncio.to_thread(client.order, campaign, "first", "first")).status == 202
        with site.stopped():
            offered.send(ROOM * 4)
            await _filled(offered)
            assert set(offered.told()) == {FULL}  # the store stands still: nobody else can have an answer
            reply = await offered.tasks[next(n for n, t in enumerate(offered.tasks) if t.done())]
            assert reply.headers["retry-after"].isdigit()
            assert "connection" not in reply.headers
        replies = await asyncio.wait_for(asyncio.gather(*offered.tasks), 30)
        told = offered.told()
        assert told[FULL] + told["202"] == len(replies)
        assert ROOM <= told["202"] <= 2 * ROOM  # what was on its way to the store, and what waited
        audit = await asyncio.to_thread(client.audit, campaign)
        assert audit["accepted"] == 1 + told["202"]  # who was refused was never asked of the store
        await offered.close()


async def test_who_waited_too_long_is_refused_though_the_store_stands_still_and_is_never_served(site: Site) -> None:
    with site.gateway(queue_ms=QUEUE_MS) as client:
        campaign = await asyncio.to_thread(client.sale, {"red": 1_000})
        assert (await asyncio.to_thread(client.order, campaign, "first", "first")).status == 202
        offered = Offered(client, campaign)
        with site.stopped():
            offered.send(1)
            await asyncio.wait(offered.tasks, timeout=0.2)  # it is on its way to the store
            offered.send(ROOM)

            async def more() -> bool:
                offered.send(1)  # each new one looks at the oldest
                return offered.told()[LATE] >= ROOM // 2

            await eventually(more, 20, 0.05)
            assert set(offered.told()) <= {LATE, FULL}
        await asyncio.wait_for(asyncio.gather(*offered.tasks), 30)
        told = offered.told()
        assert set(told) <= {LATE, FULL, "202"}
        assert told["202"] >= 1
        audit = await asyncio.to_thread(client.audit, campaign)
        assert audit["accepted"] == 1 + told["202"]
        # Healed: the next one is taken, and so is a refused key.
        again = await asyncio.to_thread(client.order, campaign, "again", "again")
        assert again.status == 202
        refused = next(n for n, t in enumerate(offered.tasks) if t.result().status == 503)
        assert (await asyncio.to_thread(client.order, campaign, f"b{refused}", f"k{refused}")).status == 202
        await offered.close()


async def test_requests_that_are_refused_before_they_are_looked_at_leave_the_connection_of_use(site: Site) -> None:
    """A body in two pieces, another path behind it, an order behind that: each gets its own answer, in order."""
    with site.gateway(queue_ms=60_000) as client:
        campaign = await asyncio.to_thread(client.sale, {"red": 1_000})
        assert (await asyncio.to_thread(client.order, campaign, "first", "first")).status == 202
        offered = Offered(client, campaign)
        with site.stopped():
            offered.send(ROOM * 3)
            await _filled(offered)
            reader, writer = await asyncio.open_connection(client.host, client.port)
            head = f"POST /v1/campaigns/{campaign}/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 30\r\n\r\n".encode()
            writer.write(head + b"P" * 12)
            await writer.drain()
            await asyncio.to_thread(client.call, "GET", "/livez")  # a whole exchange later the rest
            writer.write(b"Q" * 18 + b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" + head + b"R" * 30)
            answers = b""
            while answers.count(b"HTTP/1.1 ") < 3 or not answers.endswith(b"}"):
                answers += await asyncio.wait_for(reader.read(65_536), 20)
            assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"503", b"200", b"401"]
            # The last one came behind an answer that was not made yet, so it went the long way: no key, no look.
            writer.close()
        await asyncio.wait_for(asyncio.gather(*offered.tasks), 30)
        await offered.close()


async def test_request_that_outlives_the_grace_of_a_stop_is_told_and_leaves_no_stack_trace(site: Site) -> None:
    """The store stands still, and a gateway must stop all the same: whoever waits gets 503 for the same key."""
    part = Part(site.data / f"{fresh('part')}.log", ["gateway"], site.env | {"RUSHGATE_GRACE_S": "3"})
    try:
        client = part.gateway()
        until(lambda: client.call("GET", "/readyz").status == 200)
        campaign = await asyncio.to_thread(client.sale, {"red": 10})
        assert (await asyncio.to_thread(client.order, campaign, "first", "first")).status == 202
        offered = Offered(client, campaign)
        with site.stopped():
            offered.send(3)
            await asyncio.wait(
                offered.tasks, timeout=0.3
            )  # they are on their way, or the stop refuses their connection
            part.process.send_signal(signal.SIGTERM)
            replies = await asyncio.wait_for(asyncio.gather(*offered.tasks), 20)
            assert {(r.status, r.code, r.json["detail"]) for r in replies} == {
                (503, "store_unavailable", "the gateway stops")
            }
            assert all("retry-after" in r.headers for r in replies)
            assert await asyncio.to_thread(part.process.wait, 20) == 0
        assert "Traceback" not in part.log.read_text()
        await offered.close()
    finally:
        part.end()


async def _filled(offered: Offered) -> None:
    """As many wait as may. A burst alone does not fill the queue: what it left there may all be on its way."""

    async def refused() -> bool:
        return offered.told()[FULL] > 0

    async def one_more_is_refused() -> bool:
        offered.send(1)
        done, _ = await asyncio.wait(offered.tasks[-1:], timeout=0.2)
        return bool(done)

    await eventually(refused, 20)
    offered.send(ROOM)
    await eventually(one_more_is_refused, 20)
