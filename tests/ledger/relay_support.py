"""What the relay's tests build their cases from: a sale, partners that answer, a relay that runs."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec
from asyncpg.pgproto.pgproto import UUID

from core.desk.audit import Auditor
from core.ledger.pool import Pool
from core.model import AuditReport
from loadtest.partners import Partners as PartnersServer
from loadtest.partners_http import Connection, Request
from loadtest.partners_options import PARTNERS, Buyers, Conduct, PartnersOptions
from loadtest.partners_records import Effect
from lua.connection import StoreConnection
from tests.ledger.support import Sale
from tests.support import SHARDS, eventually
from workers.outbox import Outbox
from workers.partners import Partners
from workers.relay import RelayWorker

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
HTTP_TOPICS = "('payment','refund','warehouse','recall','provision','unprovision','bill','unbill','notify','webhook')"


class Shop(NamedTuple):
    """Partners that answer on a port of their own."""

    url: str
    server: PartnersServer
    said: list[dict[str, Any]]  # the bodies that came, in their order

    def behave(self, partner: str, **conduct: Any) -> None:
        """From now on; what is not named is as it was."""
        old = msgspec.structs.asdict(self.server.conduct[partner])
        self.server.conduct[partner] = msgspec.convert(old | conduct, Conduct)

    def effects(self, order: bytes) -> list[Effect]:
        """What was done for an order, without what the partners called back."""
        return [e for e in self.server.memory.effects(str(UUID(order))) if e.message_id.startswith("msg_")]

    def received(self, partner: str) -> int:
        """Deliveries, repeats among them."""
        return sum(t.received for t in self.server.tallies[partner].topics.values())


@contextlib.asynccontextmanager
async def shop(**conduct: Conduct) -> AsyncIterator[Shop]:
    """All partners, in this process, on a real socket. Their buyers do nothing."""
    options = PartnersOptions(
        gateway_url="http://127.0.0.1:9",
        channel_keys={"app": "test-app-key-00000"},
        secrets={"*": [SECRET]},
        conduct={name: conduct.get(name, Conduct()) for name in PARTNERS},
        buyers=Buyers(pay=0, cancel=0, ignore=1, pay_late=0),
        attempts=1,
    )
    partners, connections, said = PartnersServer(options), set[Connection](), list[dict[str, Any]]()

    def handle(request: Request, connection: Connection) -> None:
        said.append(msgspec.json.decode(request.body))
        partners.handle(request, connection)

    server = await asyncio.get_running_loop().create_server(lambda: Connection(handle, connections), "127.0.0.1", 0)
    try:
        yield Shop(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", partners, said)
    finally:
        server.close()
        for connection in list(connections):
            connection.drop()
        await partners.close()


def relay_of(ledger: Pool, store_url: str, url: str = "", **options: Any) -> RelayWorker:
    """A relay that is not running yet; with partners if there is a URL."""

    def partners(outbox: Outbox) -> Partners:
        return Partners(outbox, url, (SECRET,), **{"longest_s": 0.05, "exchange_s": 5.0} | options)

    connection = StoreConnection(store_url, "fsync", 10.0, "relay")
    return RelayWorker(ledger, connection, range(SHARDS), partners if url else None)


async def waiting(ledger: Pool, topics: str = HTTP_TOPICS) -> int:
    """Messages in the outbox."""
    return int(await ledger.fetchval(f"SELECT count(*) FROM outbox WHERE topic IN {topics}"))  # noqa: S608 - ours


async def emptied(ledger: Pool, timeout_s: float = 30.0) -> None:
    """Nothing for partners waits."""

    async def empty() -> bool:
        return await waiting(ledger) == 0

    await eventually(empty, timeout_s)


async def write(ledger: Pool, order: bytes, topic: str, version: int = 1) -> None:
    """A message in the outbox."""
    await ledger.execute(
        "INSERT INTO outbox (shard, order_id, version, topic, at) SELECT shard, order_id, $2, $3, now() "
        "FROM orders WHERE order_id = $1",
        UUID(order), version, topic,
    )  # fmt: skip


async def ids(ledger: Pool) -> list[bytes]:
    return [r["order_id"].bytes for r in await ledger.fetch("SELECT order_id FROM orders ORDER BY order_id")]


async def balanced(auditor: Auditor, sale: Sale) -> AuditReport:
    found = await auditor.audit(sale.campaign)
    assert found.ok, found.findings
    return found
