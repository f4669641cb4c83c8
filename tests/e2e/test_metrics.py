"""Every metric is told by the processes that should, moves when it should, and passes Prometheus' own check."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from uuid import UUID

import pytest

from core.metrics_table import ALL, METRICS, OF_THE_CLIENT
from lua.keys import home_shards, intake_key, sale_keys
from tests.e2e.line_support import ask, join, room_sale, set_rate
from tests.e2e.metrics_support import Partner, Scrape, Watched
from tests.e2e.support import APP_KEY, KEYS, WEB_KEY, Client, Part, Up, bearer, until
from tests.e2e.test_lifecycle import cancelled, paid
from tests.support import fresh

KINDS = set(ALL) - {"console"}
# Of tracing, which is off here; and of stores that tell it.
UNTOLD = {"rushgate_spans_exported_total", "rushgate_spans_dropped_total", "rushgate_store_aof_seconds_total"}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    partner = ThreadingHTTPServer(("127.0.0.1", 0), Partner)
    threading.Thread(target=partner.serve_forever, daemon=True).start()
    env = {
        "RUSHGATE_PARTNERS_URL": f"http://127.0.0.1:{partner.server_address[1]}",
        "RUSHGATE_RECONCILE_EVERY_S": "0.2",
        "RUSHGATE_INTAKE_HIGH_ORDERS": "300",
        "RUSHGATE_CONSOLE": "off",
    }
    data: Path = tmp_path_factory.mktemp("metrics")
    up = Up(data / "d", "--port", "0", env=env)
    try:
        yield Watched(up.wait_ready())
    finally:
        up.end()
        partner.shutdown()
        partner.server_close()


def test_processes_tell_their_metrics_and_nobody_elses(watched: Watched) -> None:
    told = watched.until(lambda s: s.values("rushgate_process_up", "kind") == KINDS)
    assert told.sum("rushgate_process_up") == len(KINDS)
    # The parser calls a counter's family by its name without `_total`.
    expected = {metric.name.removesuffix("_total") for metric in (*METRICS, *OF_THE_CLIENT)}
    assert told.families == expected | {"rushgate_process_up"}
    for metric in METRICS:
        name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        kinds = told.values(name, "kind")
        assert kinds <= set(metric.of), metric.name
        if not metric.labels:
            assert kinds == set(metric.of) & KINDS or metric.name in UNTOLD, metric.name


def test_answers_to_orders_are_counted_by_channel_outcome_and_way(watched: Watched) -> None:
    client = watched.client
    campaign = client.sale({"red": 3}, limits={"buyer": 1})
    before = watched.scrape()
    first = client.order(campaign, buyer="one", key="k-one")
    assert [client.order(campaign, buyer="one", key="k-one").status, first.status] == [202, 202]
    assert client.order(campaign, buyer="one").code == "over_limit"
    assert client.order(campaign, channel_key="nobody-knows-this-key").code == "unauthorized"
    assert client.order(campaign, key="wrong key").code == "key_invalid"
    assert client.order("no-such-campaign").code == "unknown_campaign"
    assert client.order(campaign, items=[{"sku": "blue", "quantity": 1}]).code == "unknown_sku"
    lines = [
        {"request_key": f"{campaign}-{n}", "buyer_id": f"b{n}", "items": [{"sku": sku, "quantity": 1}]}
        for n, sku in enumerate(["red", "red", "blue"])
    ]
    found = client.batch(campaign, "\n".join([*map(json.dumps, lines), "nonsense"]).encode(), WEB_KEY)
    assert [json.loads(line)["http_status"] for line in found.body.splitlines()] == [202, 202, 422, 400]
    assert client.order(campaign, channel_key=WEB_KEY).code == "sold_out"
    assert client.batch(campaign, b"", WEB_KEY).status == 422
    after = watched.scrape()

    def more(way: str, channel: str) -> dict[str, float]:
        labels = {"way": way, "channel": channel}
        names = after.values("rushgate_orders_total", "outcome")
        changes = {
            name: after.sum("rushgate_orders_total", outcome=name, **labels)
            - before.sum("rushgate_orders_total", outcome=name, **labels)
            for name in names
        }
        return {name: change for name, change in changes.items() if change}

    # The first order of a process goes the long way: it does not know the campaign yet.
    short, long = more("short", "app"), more("long", "app")
    assert {name: short.get(name, 0) + long.get(name, 0) for name in {**short, **long}} == {
        "accepted": 1, "replayed": 1, "over_limit": 1, "key_invalid": 1, "unknown_campaign": 1, "unknown_sku": 1,
    }  # fmt: skip
    assert short.keys() <= {"accepted", "replayed", "over_limit"}
    assert more("long", "") == {"unauthorized": 1}
    assert more("batch", "web") == {"accepted": 2, "unknown_sku": 1, "malformed": 1, "invalid": 1}
    assert more("short", "web") == {"sold_out": 1}
    assert after.sum("rushgate_batch_lines_sum") - before.sum("rushgate_batch_lines_sum") == 4
    # What the store decided: 2 accepted, replayed, over_limit, 2 lines, sold_out.
    asked = [s.sum("rushgate_order_seconds_count") for s in (before, after)]
    assert asked[1] - asked[0] == 6
    assert asked[1] == after.sum("rushgate_reserve_orders_sum")


def test_an_order_s_way_to_its_end_is_counted(watched: Watched) -> None:
    client = watched.client
    until(lambda: client.call("GET", "/readyz").status == 200)
    campaign = client.sale({"red": 20}, pay_within_s=1)

    def calm(now: Scrape) -> bool:
        """All orders so far are in the ledger, and their first messages delivered."""
        accepted = now.sum("rushgate_orders_total", outcome="accepted")
        delivered = now.sum("rushgate_deliveries_total", topic="payment", result="done")
        return accepted == now.sum("rushgate_ledger_orders_total") == delivered

    before = watched.until(calm)
    orders = [client.order(campaign).json["order_id"] for _ in range(12)]
    assert paid(watched.up, orders[0]).status == 200

    def missing(now: Scrape) -> dict[str, float]:
        """What is not yet as it should be, with its value."""

        def more(name: str, **labels: str) -> float:
            return now.sum(name, **labels) - before.sum(name, **labels)

        store, notify = {"destination": "store", "result": "done"}, {"destination": "notification"}
        found = {
            "orders written = 12": more("rushgate_ledger_orders_total") - 12,
            "orders in transactions = 12": more("rushgate_ledger_transaction_orders_sum") - 12,
            "expired = 11": more("rushgate_expiry_moves_total", action="expire") - 11,
            "settled = 1": more("rushgate_deliveries_total", topic="settle", **store) - 1,
            "released = 11": more("rushgate_deliveries_total", topic="release", **store) - 11,
            "payments asked for = 12": more("rushgate_deliveries_total", topic="payment", result="done") - 12,
            "their times = 12": more("rushgate_delivery_seconds_count", topic="payment") - 12,
            "refused by the warehouse = 1": more("rushgate_deliveries_total", topic="warehouse", result="dead") - 1,
            "dead = 1": now.sum("rushgate_dead_messages", destination="warehouse") - 1,
            "failed at notification >= 10": min(0, more("rushgate_deliveries_total", result="later", **notify) - 10),
            "its breaker is open": now.sum("rushgate_breaker_open", **notify) - 1,
            "its messages wait": min(0, now.sum("rushgate_outbox_messages", **notify) - 1),
            "and grow old": min(0.0, now.sum("rushgate_outbox_age_seconds", **notify) - 0.001),
            "units left = 19": now.sum("rushgate_stock_units", campaign=campaign, part="left") - 19,
            "units sold = 1": now.sum("rushgate_stock_units", campaign=campaign, part="sold") - 1,
        }
        return {what: value for what, value in found.items() if value}

    try:
        now = watched.until(lambda s: not missing(s))
    except AssertionError:
        now = watched.scrape()
    assert missing(now) == {}
    assert now.sum("rushgate_breaker_open") == 1
    assert 0 < now.sum("rushgate_expiry_late_seconds") < 20
    assert now.sum("rushgate_audit_drift") == 0
    assert now.sum("rushgate_alerts") == 0


def test_an_order_set_aside_is_counted(watched: Watched) -> None:
    before = watched.scrape()
    watched.exchange(("XADD", intake_key(5), "*", "h", "nonsense", "o", "nonsense"))
    now = watched.until(lambda s: s.sum("rushgate_dead_letters") - before.sum("rushgate_dead_letters") == 1)
    assert now.sum("rushgate_ledger_dead_letters_total") - before.sum("rushgate_ledger_dead_letters_total") == 1


def test_a_balance_that_is_wrong_shows_as_drift_and_as_an_alert(watched: Watched) -> None:
    campaign = watched.client.sale({"red": 10})
    watched.until(lambda s: s.sum("rushgate_stock_units", campaign=campaign, part="left") == 10)
    stock = sale_keys(home_shards(campaign, 1, 64)[0], campaign).stock
    watched.exchange(("HINCRBY", stock, "red", 1))
    wrong = {"campaign": campaign, "finding": "unbalanced"}
    watched.until(lambda s: s.sum("rushgate_audit_drift", **wrong) > 0 and s.sum("rushgate_alerts") > 0)
    watched.exchange(("HINCRBY", stock, "red", -1))
    watched.until(lambda s: s.sum("rushgate_audit_drift") == 0 and s.sum("rushgate_alerts") == 0)


def test_a_hold_that_nobody_would_end_is_counted_as_a_repair(watched: Watched) -> None:
    campaign = watched.client.sale({"red": 10})
    order_id, _ = (watched.client.order(campaign).json["order_id"] for _ in range(2))
    keys = sale_keys(home_shards(campaign, 1, 64)[0], campaign)
    field = UUID(order_id).bytes
    [hold] = watched.exchange(("HGET", keys.holds, field))
    assert cancelled(watched.client, order_id).status == 200
    watched.until(lambda s: s.sum("rushgate_stock_units", campaign=campaign, part="left") == 9)
    # It stands again, as in an older copy of the store.
    units = (("HINCRBY", keys.stock, "h:red", 1), ("HINCRBY", keys.stock, "red", -1))
    watched.exchange(("HSET", keys.holds, field, hold), *units)
    watched.until(lambda s: s.sum("rushgate_repairs_total", repair="released") == 1)
    watched.until(lambda s: s.sum("rushgate_stock_units", campaign=campaign, part="left") == 9)


def test_a_campaign_that_the_store_lost_is_counted_as_a_rebuild(watched: Watched) -> None:
    campaign = watched.client.sale({"red": 10})
    rebuilds = watched.scrape().sum("rushgate_rebuilds_total")
    watched.exchange(("DEL", sale_keys(home_shards(campaign, 1, 64)[0], campaign).meta))
    watched.until(lambda s: s.sum("rushgate_rebuilds_total") == rebuilds + 1)
    watched.until(lambda s: s.sum("rushgate_campaigns_out_of_service") == 0 and s.sum("rushgate_alerts") == 0)


def test_orders_that_went_with_the_store_are_counted(watched: Watched) -> None:
    client = watched.client
    campaign = client.sale({"red": 10})
    keys = sale_keys(home_shards(campaign, 1, 64)[0], campaign)
    lost = watched.scrape().sum("rushgate_rebuild_lost_orders_total")
    [worker] = watched.up.children("ledger")
    os.kill(worker, signal.SIGSTOP)
    try:
        assert client.order(campaign).status == 202  # its entry may be with the worker already
        assert many(client, campaign, 3) == [202] * 3
        watched.exchange(("DEL", *keys[:7]), ("XTRIM", keys.intake, "MAXLEN", 0))
        watched.until(lambda s: s.sum("rushgate_rebuild_lost_orders_total") - lost >= 3)
    finally:
        os.kill(worker, signal.SIGCONT)
    watched.until(lambda s: s.sum("rushgate_campaigns_out_of_service") == 0 and s.sum("rushgate_alerts") == 0)


def test_gauges_and_processes_are_alive(watched: Watched) -> None:
    now = watched.until(
        lambda s: s.sum("rushgate_store_memory_bytes") > 0 and s.sum("rushgate_campaigns", state="open")
    )
    workers = KINDS - {"gateway"}
    moved = [
        *(("rushgate_worker_rounds_total", kind) for kind in workers),
        *(("rushgate_worker_last_round_timestamp_seconds", kind) for kind in workers),
        *(("rushgate_event_loop_lag_seconds_count", kind) for kind in KINDS),
        *(("process_cpu_seconds_total", kind) for kind in KINDS),
        *(("process_resident_memory_bytes", kind) for kind in KINDS),
        *(("process_open_fds", kind) for kind in KINDS),
        *(("rushgate_build_info", kind) for kind in KINDS),
        *((name, "gateway") for name in (
            "rushgate_store_available", "rushgate_campaigns_known", "rushgate_queue_room_orders",
            "rushgate_http_requests_total", "rushgate_store_round_trip_seconds_count",
        )),
        ("rushgate_ledger_transaction_seconds_count", "ledger"),
        ("rushgate_audits_total", "reconcile"),
        ("rushgate_audit_seconds_count", "reconcile"),
        ("rushgate_store_admitted", "reconcile"),
        ("rushgate_store_aof_seconds_total", "reconcile"),
    ]  # fmt: skip
    assert [(name, kind) for name, kind in moved if not now.sum(name, kind=kind) > 0] == []
    assert now.sum("rushgate_intake_refusing") == now.sum("rushgate_campaigns_out_of_service") == 0


def many(client: Client, campaign: str, orders: int) -> list[int]:
    """The statuses of so many orders in one request."""
    lines = [
        json.dumps({"request_key": fresh("k"), "buyer_id": f"b{n}", "items": [{"sku": "red", "quantity": 1}]})
        for n in range(orders)
    ]
    return [
        json.loads(line)["http_status"] for line in client.batch(campaign, "\n".join(lines).encode()).body.splitlines()
    ]


def test_backlog_shows_while_the_ledger_worker_stands_still(watched: Watched) -> None:
    [worker] = watched.up.children("ledger")
    client = watched.client
    campaign = client.sale({"red": 1_000})
    os.kill(worker, signal.SIGSTOP)
    try:
        assert many(client, campaign, 250) == [202] * 250
        now = watched.until(lambda s: s.sum("rushgate_intake_orders") == 250 and s.sum("rushgate_intake_age_seconds"))
        assert now.sum("rushgate_intake_entries") >= 1
        assert now.sum("rushgate_intake_refusing") == 0
        many(client, campaign, 250)
        watched.until(lambda s: s.sum("rushgate_intake_refusing") == 1)
        assert client.order(campaign).code == "overloaded"
    finally:
        os.kill(worker, signal.SIGCONT)
    now = watched.until(lambda s: s.sum("rushgate_intake_orders") == s.sum("rushgate_intake_pending_entries") == 0)
    assert now.sum("rushgate_orders_total", outcome="overloaded", channel="app") >= 1
    assert now.sum("rushgate_ledger_batches_total", how="copy") >= 1
    watched.until(lambda s: s.sum("rushgate_intake_refusing") == 0)


def test_queue_shows_while_the_store_stands_still(watched: Watched) -> None:
    client = watched.client
    campaign = client.sale({"red": 10})
    assert client.order(campaign).status == 202

    def own() -> Scrape:
        return Scrape(client.call("GET", "/metrics", headers=bearer(client.admin_token)).body.decode())

    answers: list[int] = []
    buyers = [threading.Thread(target=lambda: answers.append(client.order(campaign).status)) for _ in range(4)]
    watched.exchange(("CLIENT", "PAUSE", 2_500, "ALL"))  # longer than an exchange may take
    for buyer in buyers:
        buyer.start()
    until(lambda: own().sum("rushgate_in_flight_orders") + own().sum("rushgate_queue_orders") >= 4)
    assert own().sum("rushgate_connections") >= 4
    until(lambda: own().sum("rushgate_store_available") == 0)
    for buyer in buyers:
        buyer.join()
    assert answers == [503] * 4
    until(lambda: own().sum("rushgate_store_available") == 1)
    assert own().sum("rushgate_orders_total", outcome="store_unavailable", way="short") == 4
    watched.until(lambda s: s.sum("rushgate_in_flight_orders") + s.sum("rushgate_queue_orders") == 0)


def test_waiting_room_and_rate_limits_are_counted(watched: Watched) -> None:
    client = watched.client
    campaign = room_sale(client, room={"rate": 0})
    join(client, campaign, "one")
    line = join(client, campaign, "two")["line"]
    now = watched.until(lambda s: s.sum("rushgate_room_joined", campaign=campaign) == 2)
    assert now.sum("rushgate_room_admitted", campaign=campaign) == 0
    waits = threading.Thread(target=ask, args=(client, campaign, line, 20))
    waits.start()
    watched.until(lambda s: s.sum("rushgate_room_listeners") == 1)
    set_rate(client, campaign, mode="fixed", rate=1_000)
    waits.join()
    watched.until(lambda s: s.sum("rushgate_room_admitted", campaign=campaign) == 2)
    limited = client.sale(rates={"buyer": "1/h"})
    assert [client.order(limited, buyer="one").status for _ in range(3)] == [202, 429, 429]
    now = watched.scrape()
    counts = {result: now.sum("rushgate_rate_checks_total", result=result) for result in ("passed", "limited")}
    assert counts == {"passed": 1, "limited": 2}
    assert now.sum("rushgate_orders_total", outcome="rate_limited", channel="app") == 2


def test_sold_out_flag_shows(watched: Watched) -> None:
    client = watched.client
    campaign = client.sale({"red": 1})
    until(lambda: client.order(campaign).code == "sold_out")
    watched.until(lambda s: client.order(campaign).code == "sold_out" and s.sum("rushgate_sold_out_flags") >= 1)


def test_gateway_gives_its_own_metrics_to_operators_alone(watched: Watched) -> None:
    client = watched.client
    found = client.call("GET", "/metrics", headers=bearer(client.admin_token))
    assert (found.status, found.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"rushgate_orders_total" in found.body
    assert b"rushgate_ledger_orders" not in found.body
    assert client.call("GET", "/metrics").code == "unauthorized"
    assert client.call("GET", "/metrics", headers=bearer(APP_KEY)).code == "operators_only"


def test_command_prints_the_metrics_and_where_they_are(watched: Watched) -> None:
    found = watched.up.command("metrics", "--kind", "ledger", "--only", "ledger_orders")
    assert (found.returncode, found.stderr) == (0, "")
    assert [line.split("{")[0] for line in found.stdout.splitlines()] == [
        "# HELP rushgate_ledger_orders_total Orders written to the ledger by this worker.",
        "# TYPE rushgate_ledger_orders_total counter",
        "rushgate_ledger_orders_total",
    ]
    where = json.loads(watched.up.command("metrics", "--targets").stdout)
    assert {one["labels"]["kind"] for one in where} == KINDS


def test_gateway_without_metrics_counts_nothing_and_serves_orders(watched: Watched, tmp_path: Path) -> None:
    ready = watched.up.ready
    env = {"RUSHGATE_STORE_URL": ready["store"], "RUSHGATE_LEDGER_DSN": ready["ledger"], "RUSHGATE_PORT": "0"}
    part = Part(tmp_path / "log", ["gateway"], {**KEYS, **env, "RUSHGATE_METRICS_LISTEN": ""})
    try:
        client = part.gateway()
        campaign = client.sale({"red": 3})
        assert [client.order(campaign).status for _ in range(2)] == [202, 202]
        found = client.call("GET", "/metrics", headers=bearer(client.admin_token))
        assert (found.status, found.code) == (404, "not_found")
        assert "metrics served" not in part.text
        told = watched.scrape()
        assert not any(f"gateway-{part.process.pid}-" in name for name in told.values("rushgate_process_up", "process"))
    finally:
        part.end()


@pytest.mark.deploy
def test_promtool_is_content_with_all_of_it(watched: Watched) -> None:
    assert shutil.which("promtool"), "Debian's package prometheus"
    text = watched.scrape().text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
