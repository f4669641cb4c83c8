"""The metrics: their table, the counting, the expositions, and that all of it stays bounded."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parsed

import ops.console.gathered
from core.errors import ConfigInvalid, StoreUnavailable
from core.metrics import MAX_TEXT, Book, Buckets
from core.metrics_server import CONNECTIONS, HEAD_BYTES, MetricsServer, address
from core.metrics_table import ALL, GATHERED, METRICS, OF_THE_CLIENT, ORDERS, of_kind
from core.model import AuditReport, AuditSku
from core.settings import Settings
from gateway.problems import CODES
from gateway.tally import MAX_CHANNELS, OTHER, OUTCOMES, PLACE, Tally
from lua.connection import Command, Reply
from lua.registry import Sign
from ops.console.gathered import Gathered
from ops.metrics_gather import DEAD_S, ask_all, merged, targets
from workers.metrics_audit import MAX_CAMPAIGNS, MAX_SKUS, AuditBook

HOSTILE = ['"', "\n", "\\", '{a="b"}', "\0", "\ud800", "x" * 10_000, "# HELP", "é", ""]


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in parsed(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_definitions_follow_the_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("rushgate_")
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric
        assert not {"process", "kind", "le"} & set(metric.labels), metric
        assert metric.help.endswith("."), metric
        assert metric.of, metric
        assert set(metric.of) <= set(ALL), metric
        assert (metric.kind == "histogram") == bool(metric.bounds), metric
        assert list(metric.bounds) == sorted(set(metric.bounds)), metric


@pytest.mark.parametrize("kind", ALL)
def test_book_has_every_metric_of_its_kind_before_anything_is_counted(kind: str) -> None:
    text = Book(kind).exposition().decode()
    told = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert told == {metric.name for metric in (*of_kind(kind), *OF_THE_CLIENT)}


def test_book_refuses_a_row_of_another_kind() -> None:
    book = Book("expiry")
    book.add(lambda: [("rushgate_orders_total", ("app", "accepted", "short"), 1)])
    with pytest.raises(KeyError):
        book.exposition()


def test_labels_are_short_and_can_be_read_again_whatever_they_are() -> None:
    book = Book("gateway")
    book.add(lambda: [("rushgate_orders_total", (text, "accepted", "short"), n) for n, text in enumerate(HOSTILE)])
    told = samples(book.exposition().decode())["rushgate_orders_total"]
    expected = [text[:MAX_TEXT].encode("utf-8", "replace").decode() for text in HOSTILE]
    assert [(labels["channel"], value) for labels, value in told] == list(
        zip(expected, map(float, range(10)), strict=True)
    )


@settings(deadline=None)
@given(st.lists(st.floats(0, 7_000, allow_nan=False), max_size=300), st.floats(7_000, 7_100))
def test_times_counted_for_a_batch_are_those_counted_one_by_one(began_s: list[float], now_s: float) -> None:
    at_once, one_by_one = Buckets(ORDERS), Buckets(ORDERS)
    at_once.add_since(sorted(began_s), now_s)
    for since_s in began_s:
        one_by_one.add(now_s - since_s)
    assert sum(at_once.counts) == len(began_s)
    # A value on a bound may be rounded to either side of it.
    assert sum(abs(a - b) for a, b in zip(at_once.counts, one_by_one.counts, strict=True)) <= 2
    assert math.isclose(at_once.total, one_by_one.total, abs_tol=1e-6)


def test_histogram_counts_a_value_on_a_bound_into_its_bucket() -> None:
    buckets = Buckets((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        buckets.add(value)
    assert buckets.counts == [2, 2, 1]
    buckets.add_since([10.0, 11.0, 11.5], 12.0)
    assert (buckets.counts, buckets.total) == ([4, 3, 1], 8.0 + 3.5)


def test_every_problem_is_an_outcome() -> None:
    assert set(OUTCOMES) == {"accepted", "replayed", *CODES}
    assert [OUTCOMES[place] for place in PLACE.values()] == list(PLACE)


def test_channels_are_bounded_and_no_order_is_left_out() -> None:
    tally = Tally()
    for n in range(10 * MAX_CHANNELS):
        tally.short[f"channel-{n}"][PLACE["accepted"]] += 1
        tally.batch[HOSTILE[n % 10] + str(n)][PLACE["sold_out"]] += 1
    rows = [(labels, value) for name, labels, value in tally.rows() if name == "rushgate_orders_total"]
    assert len(rows) <= 3 * (MAX_CHANNELS + 1) * 2
    assert sum(v for _, v in rows if isinstance(v, int)) == 20 * MAX_CHANNELS
    assert any(labels[0] == OTHER for labels, _ in rows)


def report(skus: int, **values: int) -> AuditReport:
    sku = AuditSku(sku="s", allocation=9, left=4, held=3, sold=2, in_flight=0)
    zero = dict.fromkeys(("accepted", "persisted", "oversold", "lost", "duplicated", "unsold"), 0)
    made = zero | dict.fromkeys(("phantom", "over_limit", "in_flight", "dead_lettered"), 0) | values
    named = [msgspec.structs.replace(sku, sku=f"s{n}") for n in range(skus)]
    return AuditReport(ok=not values, skus=named, findings=["one"] if values else [], **made)


def test_stock_and_drift_are_bounded_and_findings_are_told_first() -> None:
    book = AuditBook()
    for n in range(5 * MAX_CAMPAIGNS):
        book.note(f"c{n}", "open", report(10), (), 0)
    book.note("wrong", "closed", report(10, lost=7), ("lost", "unbalanced"), 2)
    rows = list(book.rows())
    stock = [row for row in rows if row[0] == "rushgate_stock_units"]
    assert len(stock) == 3 * MAX_SKUS
    assert ("rushgate_stock_skus_unshown", (), 50 * MAX_CAMPAIGNS - MAX_SKUS) in rows
    drift = {row[1]: row[2] for row in rows if row[0] == "rushgate_audit_drift"}
    assert len({campaign for campaign, _ in drift}) == MAX_CAMPAIGNS
    assert {kind: count for (name, kind), count in drift.items() if name == "wrong" and count} == {
        "lost": 7,
        "unbalanced": 1,
    }


def test_closed_campaigns_in_order_leave_nothing_behind() -> None:
    book = AuditBook()
    book.note("c", "open", report(1), (), 0)
    assert [row for row in book.rows() if "c" in row[1]]
    book.note("c", "closed", report(1), (), 0)
    assert not [row for row in book.rows() if "c" in row[1]]


@pytest.mark.parametrize("listen", ["nonsense", "host:", ":99999", "host:12x"])
def test_address_that_is_none_is_told(listen: str) -> None:
    with pytest.raises(ConfigInvalid, match="RUSHGATE_METRICS_LISTEN"):
        address(listen)


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "[::1:9", "host:port"])
def test_setting_that_is_no_address_is_told(listen: str) -> None:
    with pytest.raises(ConfigInvalid, match="RUSHGATE_METRICS_LISTEN: must be host:port"):
        Settings.from_env({"RUSHGATE_METRICS_LISTEN": listen})


def test_addresses() -> None:
    assert (address(""), address("[::1]:9"), address("h:0"), address(":7")) == (None, ("::1", 9), ("h", 0), ("", 7))


@asynccontextmanager
async def serving(listen: str = "127.0.0.1:0") -> AsyncIterator[MetricsServer]:
    server = MetricsServer(Book("expiry"), listen)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def port_of(server: MetricsServer) -> int:
    return int(server.url.split(":")[2].split("/")[0])


async def told(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_server_answers_get_and_nothing_else() -> None:
    async with serving() as server:
        port = port_of(server)
        found = await told(port, b"GET /metrics?x=1 HTTP/1.1\r\nhost: x\r\n\r\n")
        head, _, body = found.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-length: %d\r\n" % len(body) in head
        assert b"rushgate_event_loop_lag_seconds_count" in body
        assert (await told(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
        assert (await told(port, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        assert (await told(port, b"GET /else HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        for nonsense in (b"\r\n\r\n", b"GET\r\n\r\n", b"\0\xff /metrics x y\r\n\r\n"):
            assert (await told(port, nonsense)).startswith(b"HTTP/1.1 405 ")


async def test_server_ends_a_head_without_end_and_connections_beyond_its_bound() -> None:
    async with serving() as server:
        port = port_of(server)
        assert await told(port, b"GET /metrics HTTP/1.1\r\n" + b"x" * 4 * HEAD_BYTES) == b""
        waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS)]
        assert await told(port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        for _, writer in waiting:
            writer.close()
            await writer.wait_closed()


async def test_server_takes_a_free_port_when_its_own_is_taken() -> None:
    async with serving() as first, serving(f"127.0.0.1:{port_of(first)}") as second:
        assert port_of(second) != port_of(first)
        assert b" 200 " in await told(port_of(second), b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_server_without_an_address_serves_nothing() -> None:
    async with serving("") as server:
        assert server.url == ""


async def test_gathered_exposition_has_each_metric_once_and_the_dead_as_down() -> None:
    async with serving() as one, serving() as two:
        deaf = socket.create_server(("127.0.0.1", 0))  # takes connections, and nobody reads them
        silent = f"http://127.0.0.1:{deaf.getsockname()[1]}/metrics"
        signs = [
            Sign(id="one", kind="expiry", metrics=one.url),
            Sign(id='tw"o\n', kind="expiry", metrics=two.url),
            Sign(id="dead", kind="relay", metrics="http://127.0.0.1:1/metrics"),
            Sign(id="deaf", kind="relay", metrics=silent),
            Sign(id="odd", kind="relay", metrics="file:///etc/passwd"),
            Sign(id="none", kind="ledger"),
        ]
        began_s = asyncio.get_running_loop().time()
        text = merged(await ask_all(signs)).decode()
        assert asyncio.get_running_loop().time() - began_s < DEAD_S + 1
    deaf.close()
    families = [family.name for family in parsed(text)]
    assert len(set(families)) == len(families)
    found = samples(text)
    up = {(labels["process"], labels["kind"]): value for labels, value in found[GATHERED[0].name]}
    assert up == {
        ("one", "expiry"): 1, ('tw"o\n', "expiry"): 1, ("dead", "relay"): 0, ("deaf", "relay"): 0, ("odd", "relay"): 0,
    }  # fmt: skip
    lag = found["rushgate_event_loop_lag_seconds_count"]
    assert [labels for labels, _ in lag] == [
        {"process": "one", "kind": "expiry"},
        {"process": 'tw"o\n', "kind": "expiry"},
    ]
    bucket = found["rushgate_event_loop_lag_seconds_bucket"][0][0]
    assert set(bucket) == {"process", "kind", "le"}


async def test_gathered_shows_a_process_that_hangs_as_down_until_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.console.gathered, "FRESH_S", -1.0)  # each time anew
    deaf = socket.create_server(("127.0.0.1", 0))  # takes connections, and nobody reads them
    deaf_url = f"http://127.0.0.1:{deaf.getsockname()[1]}/metrics"
    fields: dict[str, tuple[str, int]] = {}

    async def exchange(commands: Sequence[Command]) -> list[Reply]:
        signs = [Sign(id=name, kind="relay", metrics=url, seen_at=at) for name, (url, at) in fields.items()]
        return [[text for s in signs for text in (s.id.encode(), msgspec.json.encode(s))], [b"100", b"0"]]

    async def up(gathered: Gathered) -> dict[str, float]:
        found = samples(await gathered.text())[GATHERED[0].name]
        return {labels["process"]: value for labels, value in found}

    async with serving() as one:
        gathered = Gathered(exchange)
        fields = {
            "one": (one.url, 100_000),
            "hangs": (deaf_url, 90_000),
            "killed": ("http://127.0.0.1:1/metrics", 90_000),
            "replaced": (one.url, 90_000),  # what was started in its place listens at its address
        }
        assert await up(gathered) == {"one": 1, "hangs": 0}
        del fields["hangs"]  # its sign is forgotten after a minute
        assert await up(gathered) == {"one": 1, "hangs": 0}
        deaf.close()
        assert await up(gathered) == {"one": 1}


async def test_gathered_without_the_store_asks_those_it_named_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.console.gathered, "FRESH_S", -1.0)  # each time anew
    away = True

    async def exchange(commands: Sequence[Command]) -> list[Reply]:
        if away:
            raise StoreUnavailable("the store cannot be reached: timeout")
        sign = Sign(id="one", kind="reconcile", metrics=one.url, seen_at=1_000)
        return [[b"one", msgspec.json.encode(sign)], [b"1", b"0"]]

    async with serving() as one:
        gathered = Gathered(exchange)
        first = await gathered.response()
        assert (first.status_code, bytes(first.body)) == (503, b"the store cannot be reached: timeout\n")
        away = False
        assert "rushgate_process_up" in samples(await gathered.text())
        away = True
        later = await gathered.response()
        assert later.status_code == 200
        up = samples(bytes(later.body).decode())["rushgate_process_up"]
        assert up == [({"process": "one", "kind": "reconcile"}, 1)]


def test_targets_are_as_service_discovery_wants_them() -> None:
    signs = [Sign(id="a", kind="gateway", metrics="http://[::1]:9464/metrics"), Sign(id="b", kind="relay")]
    assert msgspec.json.decode(targets(signs)) == [
        {
            "targets": ["[::1]:9464"],
            "labels": {"process": "a", "kind": "gateway", "__metrics_path__": "/metrics"},
        }
    ]


def test_gathering_nothing_is_an_exposition_too() -> None:
    assert samples(merged([]).decode()) == {}
