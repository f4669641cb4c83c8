"""What the guards at the door cost: keys, signatures, tickets and rates, in turns on one gateway, at level fsync.

The requests are made before the clock runs, so that the generator's work is the same for all.
"""

import time
from collections.abc import Callable
from typing import Any

from bench.environment import shown, spread
from bench.intake import body_of, closed_loop, drop, gateway_beside_store, key_of, request_of
from bench.services import CHANNEL_KEY, Services
from core.desk.access_books import AccessBooks
from core.desk.channels import ChannelDesk, ChannelSpec, NewKey
from core.ledger.pool import open_pool
from core.request_signing import sign
from core.tickets import Ticket, Tickets
from loadtest.campaign import orders_path
from loadtest.exchange import Target

CONNECTIONS = (64, 256)
ORDERS = 30_000  # a run
ROUNDS = 5
SECRET = "bench-secret-of-the-door-0"  # noqa: S105 - of services that nobody else reaches
RATES = {
    "rate by buyer": {"buyer": "1000/s"},
    "rates by buyer, address, device": {"buyer": "1000/s", "ip": "1000/s", "device": "1000/s"},
}
GUARDS = ("key of the settings", "key of the ledger", "signed request", "ticket", *RATES)
Run = dict[str, float]
Headers = Callable[[str, int], str]  # of mark, number


async def measure(services: Services) -> dict[str, Any]:
    """Accepted/s and CPU per order behind each guard, and both beside the first one's in the same round."""
    settings = services.settings.with_values(ticket_secrets=(SECRET,), signing_secrets=(SECRET,))
    ledger = await open_pool(settings.ledger_dsn, "bench", 30.0, 1)
    channels = ChannelDesk(AccessBooks(services.store, ledger), (SECRET,))
    web = await channels.add(ChannelSpec("web"))
    server = await channels.add(ChannelSpec("server", kind="signing"))
    ledger.terminate()
    found: dict[int, dict[str, list[Run]]] = {c: {guard: [] for guard in GUARDS} for c in CONNECTIONS}
    async with gateway_beside_store(services, settings) as gateway:
        for n in range(ROUNDS):
            for guard in GUARDS[n % len(GUARDS) :] + GUARDS[: n % len(GUARDS)]:
                for connections, runs in found.items():
                    sale = await services.open_sale(f"door-{n}-{GUARDS.index(guard)}-{connections}", RATES.get(guard))
                    headers = _headers(guard, sale.campaign, web, server)
                    for mark, orders in (("w", 2_000), ("m", ORDERS)):
                        requests = _requests(gateway.target, sale.campaign, headers, mark, orders)
                        took = await closed_loop(gateway, connections, orders, requests.__getitem__)
                    runs[guard].append(took)
                    await drop(services, sale)
    print(f"\nguards at the door: fsync, {ORDERS:,} orders a run, in turns")
    tables = {f"at_{connections}": _table(connections, runs) for connections, runs in found.items()}
    return {**tables, "settings": {"orders": ORDERS}}


def _table(connections: int, found: dict[str, list[Run]]) -> dict[str, Any]:
    """Of each guard the spread of its runs, by themselves and beside those of the first one in the same rounds."""
    plain, table = found[GUARDS[0]], {}
    for guard, runs in found.items():
        columns = {key: [run[key] for run in runs] for key in ("accepted_per_s", "gateway_us", "store_us")}
        pairs = list(zip(runs, plain, strict=True))
        columns["share_of_first"] = [run["accepted_per_s"] / first["accepted_per_s"] for run, first in pairs]
        columns["gateway_more_us"] = [run["gateway_us"] - first["gateway_us"] for run, first in pairs]
        print(f"  {connections:>3} connections, {guard}: {shown(columns['accepted_per_s'], 'accepted/s')}")
        print(f"      CPU: gateway {shown(columns['gateway_us'], 'us/order', 1)}, "
              f"store {shown(columns['store_us'], 'us/order', 1)}")  # fmt: skip
        table[guard] = {key: spread(values) for key, values in columns.items()}
    return table


def _headers(guard: str, campaign: str, web: NewKey, server: NewKey) -> Headers:
    """What makes the caller known, of the n-th order."""
    if guard == "ticket":
        tickets, expires_ms = Tickets((SECRET,)), int(time.time() * 1000) + 600_000

        def ticket(mark: str, n: int) -> str:
            text = tickets.issue(Ticket("web", campaign, f"{mark}{n:08d}", "", expires_ms))
            return f"authorization: Bearer {text}\r\n"

        return ticket
    if guard == "signed request":
        at_s = int(time.time())

        def signed(mark: str, n: int) -> str:
            path, body = orders_path(campaign), body_of(mark, n)
            made = sign(server.key, server.key_id, at_s, "POST", path, body, key_of(mark, n))
            return "".join(f"{name}: {value}\r\n" for name, value in made.items())

        return signed
    key = web.key if guard == "key of the ledger" else CHANNEL_KEY
    return lambda mark, n: f"authorization: Bearer {key}\r\n"


def _requests(target: Target, campaign: str, headers: Headers, mark: str, orders: int) -> list[bytes]:
    """All of a run, whole."""
    first = f"POST {orders_path(campaign)} HTTP/1.1\r\nhost: {target.authority}\r\n"
    return [request_of((first + headers(mark, n)).encode(), mark, n) for n in range(orders)]
