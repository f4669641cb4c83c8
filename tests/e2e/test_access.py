"""Channels over HTTP, on both ways of an order: added, signed for, rotated under load, revoked, blocked, confined."""

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis import Redis

from core.request_signing import sign
from ops import cli
from tests.e2e.conftest import own_gateway
from tests.e2e.support import ADMIN, APP_KEY, Client, Part, Reply, Up, bearer, exchange, until
from tests.support import fresh

ORDER = {"buyer_id": "anna", "items": [{"sku": "red", "quantity": 1}]}


@pytest.fixture(scope="module", params=["on", "off"], ids=["short way", "long way"])
def gate(request: pytest.FixtureRequest, stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One gateway process on the stack's store and ledger, with its secrets: what it is told works there at once."""
    drawn = json.loads((stack.data / "secrets.json").read_text())
    env = {"RUSHGATE_SIGNING_SECRETS": drawn["signing_secret"]}
    log: Path = tmp_path_factory.mktemp("gate") / "log"
    part = Part(log, ["gateway"], own_gateway(stack) | env | {"RUSHGATE_SHORT_WAY": request.param})
    try:
        yield part.gateway()
    finally:
        part.end()


def admin(client: Client, method: str, path: str, body: Any = None, key: str = ADMIN) -> Reply:
    data = None if body is None else json.dumps(body).encode()
    return client.call(method, f"/v1/admin/{path}", data, bearer(key))


def added(client: Client, **fields: Any) -> dict[str, str]:
    """A new channel's first key."""
    reply = admin(client, "POST", "channels", {"channel": fresh("ch")} | fields)
    assert reply.status == 200, reply
    assert reply.headers["cache-control"] == "no-store"
    new: dict[str, str] = reply.json
    return new


def signed(
    new: Mapping[str, str], path: str, body: bytes = b"", method: str = "POST", key: str = "", at_s: float | None = None
) -> dict[str, str]:
    at = int(time.time() if at_s is None else at_s)
    heads = sign(new["key"], new["key_id"], at, method, path, body, key)
    return heads | ({"Idempotency-Key": key} if key else {})


def order_signed(client: Client, new: Mapping[str, str], campaign: str, key: str, **more: Any) -> Reply:
    path, body = f"/v1/campaigns/{campaign}/orders", json.dumps(ORDER).encode()
    return client.call("POST", path, body, signed(new, path, body, key=key, **more))


def settled(reply: Reply) -> Reply | None:
    """The answer unless the order is still on its way to the ledger."""
    return None if reply.status == 503 and reply.code == "on_its_way" else reply


def soon(ask: Any, status: int) -> Reply:
    """The answer once it has this status: another gateway hears of a change within a second."""

    def once() -> Reply | None:
        reply: Reply = ask()
        return reply if reply.status == status else None

    found: Reply = until(once)
    return found


def test_signed_order_is_taken_and_again_is_the_same(gate: Client) -> None:
    campaign, new, key = gate.sale(), added(gate, kind="signing"), fresh("key")
    first, again = order_signed(gate, new, campaign, key), order_signed(gate, new, campaign, key)
    assert (first.status, again.body, again.headers["idempotent-replayed"]) == (202, first.body, "true")
    order = first.json["order_id"]
    path = f"/v1/orders/{order}"
    assert gate.call("GET", path, headers=signed(new, path, method="GET")).json["channel"] == new["channel"]
    listed = f"/v1/orders?campaign={campaign}&limit=5"
    page = until(lambda: gate.call("GET", listed, headers=signed(new, listed, method="GET")).json["orders"])
    assert [o["order_id"] for o in page] == [order]
    cancel = path + "/cancel"
    moved = until(lambda: settled(gate.call("POST", cancel, b"", signed(new, cancel))))
    assert (moved.status, moved.json["state"]) == (200, "cancelled")


def test_replay_of_a_signed_request_by_whoever_saw_it_makes_no_second_order(gate: Client) -> None:
    campaign, new = gate.sale({"red": 5}), added(gate, kind="signing")
    path, body = f"/v1/campaigns/{campaign}/orders", json.dumps(ORDER).encode()
    heads = signed(new, path, body, key=fresh("key"))
    answers = [gate.call("POST", path, body, heads) for _ in range(4)]
    assert [a.status for a in answers] == [202] * 4
    assert len({a.json["order_id"] for a in answers}) == 1
    other = gate.call("POST", path, body, heads | {"Idempotency-Key": fresh("key")})
    assert other.code == "signature_invalid"  # the request key is signed
    assert gate.settled_audit(campaign)["accepted"] == 1


def test_signed_batch_is_taken(gate: Client) -> None:
    campaign, new = gate.sale(), added(gate, kind="signing")
    path = f"/v1/campaigns/{campaign}/orders:batch"
    body = b"\n".join(json.dumps(ORDER | {"request_key": f"k{n}", "buyer_id": f"b{n}"}).encode() for n in range(3))
    reply = gate.call("POST", path, body, signed(new, path, body))
    assert [json.loads(line)["http_status"] for line in reply.body.splitlines()] == [202] * 3
    assert gate.call("POST", path, body + b"\n", signed(new, path, body)).code == "signature_invalid"


@pytest.mark.parametrize("clock_s", [-301, 301])
def test_signed_order_of_a_wrong_clock_is_refused_and_says_so(gate: Client, clock_s: int) -> None:
    campaign, new = gate.sale(), added(gate, kind="signing")
    assert order_signed(gate, new, campaign, fresh("key"), at_s=time.time() + clock_s * 0.95).status == 202
    refused = order_signed(gate, new, campaign, fresh("key"), at_s=time.time() + clock_s)
    assert (refused.status, refused.code) == (401, "signature_invalid")
    assert "our clock" in refused.json["detail"]
    assert new["key"] not in refused.body.decode()


def test_body_that_was_changed_on_its_way_is_refused_before_it_is_read(gate: Client) -> None:
    campaign, new = gate.sale(), added(gate, kind="signing")
    path, body = f"/v1/campaigns/{campaign}/orders", json.dumps(ORDER).encode()
    for changed in (body.replace(b"anna", b"eve!"), b"{", b"\xff" * 100, b""):
        refused = gate.call("POST", path, changed, signed(new, path, body, key="k"))
        assert refused.code == "signature_invalid", changed


def test_channel_sells_only_its_campaigns(gate: Client) -> None:
    mine, other = gate.sale(), gate.sale()
    closed_to_all = gate.sale(channels=["app"])
    new = added(gate, campaigns=[mine, closed_to_all])
    assert gate.order(mine, channel_key=new["key"]).status == 202
    refused = gate.order(other, channel_key=new["key"])
    assert (refused.status, refused.code) == (403, "campaign_not_allowed")
    assert gate.order(closed_to_all, channel_key=new["key"]).code == "channel_not_allowed"  # the campaign's own word
    lines = json.dumps(ORDER | {"request_key": "k"}).encode()
    assert json.loads(gate.batch(other, lines, new["key"]).body)["code"] == "campaign_not_allowed"
    assert admin(gate, "PATCH", f"channels/{new['channel']}", {"campaigns": None}).json["campaigns"] is None
    assert gate.order(other, channel_key=new["key"]).status == 202


@pytest.mark.parametrize(
    ("kind", "value", "fields"),
    [
        ("buyer", "eve", {"buyer": "eve"}),
        ("ip", "198.51.100.7", {"client_ip": "198.51.100.7"}),
        ("ip", "198.51.100.0/25", {"client_ip": "::ffff:198.51.100.9"}),
        ("ip", "2001:db8:7::/48", {"client_ip": "2001:DB8:7:0::1"}),
    ],
)
def test_blocked_orders_are_refused_until_the_block_is_taken_away(
    gate: Client, kind: str, value: str, fields: dict[str, Any]
) -> None:
    campaign = gate.sale()
    assert gate.order(campaign, **fields).status == 202
    assert admin(gate, "POST", "blocks", {"kind": kind, "value": value, "reason": "a test"}).status == 200
    try:
        refused = gate.order(campaign, **fields)
        assert (refused.status, refused.code) == (403, "blocked")
        assert "a test" not in refused.body.decode()
        buyer = fields.get("buyer", "someone")
        line = ORDER | {"request_key": "k", "buyer_id": buyer} | {k: v for k, v in fields.items() if k != "buyer"}
        told = [json.loads(x) for x in gate.batch(campaign, json.dumps(line).encode()).body.splitlines()]
        assert [t["code"] for t in told] == ["blocked"]
        assert gate.order(campaign, "somebody-else").status == 202
        assert value in [b["value"] for b in admin(gate, "GET", "blocks").json["blocks"]]
    finally:
        path = f"blocks?kind={kind}&value={value.replace('/', '%2F')}"
        assert admin(gate, "DELETE", path).json["was"] is True
    assert gate.order(campaign, **fields).status == 202


@contextlib.contextmanager
def connections(client: Client, count: int) -> Iterator[list[http.client.HTTPConnection]]:
    """Kept open: with two processes behind the port, some go to each."""
    opened = [http.client.HTTPConnection(client.host, client.port, timeout=30) for _ in range(count)]
    try:
        yield opened
    finally:
        for one in opened:
            one.close()


def ask(connection: http.client.HTTPConnection, campaign: str, key: str) -> Reply:
    body = json.dumps(ORDER | {"buyer_id": fresh("b")}).encode()
    heads = bearer(key) | {"Idempotency-Key": fresh("k")}
    return exchange(connection, "POST", f"/v1/campaigns/{campaign}/orders", body, heads)


def test_revoked_key_is_refused_within_a_second_on_open_connections_of_every_gateway(stack: Up, client: Client) -> None:
    campaign, new = client.sale({"red": 100_000}), added(client)
    with connections(client, 8) as opened:
        for one in opened:
            soon(lambda one=one: ask(one, campaign, new["key"]), 202)
        done = stack.command("channel", "revoke", new["channel"], "--key", new["key_id"])
        assert done.returncode == 0, done.stderr
        told_s = time.monotonic()
        for one in opened:
            assert soon(lambda one=one: ask(one, campaign, new["key"]), 401).code == "unauthorized"
        assert time.monotonic() - told_s < 2  # a second, and what a busy machine adds
        assert ask(opened[0], campaign, APP_KEY).status == 202


@pytest.mark.parametrize("call", ["orders", "orders:batch"])
def test_revoked_key_opens_nothing_for_a_body_that_comes_later_than_its_head(gate: Client, call: str) -> None:
    """Requests that were begun in time would be a stock of orders for whoever stole the key."""
    campaign, new = gate.sale(), added(gate)
    body = json.dumps(ORDER | ({"request_key": "k"} if call == "orders:batch" else {})).encode()
    with connections(gate, 1) as [slow]:
        slow.putrequest("POST", f"/v1/campaigns/{campaign}/{call}")
        for name, value in (bearer(new["key"]) | {"Idempotency-Key": "k", "Transfer-Encoding": "chunked"}).items():
            slow.putheader(name, value)
        slow.endheaders(b"%x\r\n%b\r\n" % (5, body[:5]))
        assert gate.order(campaign, channel_key=new["key"]).status == 202  # came after the head, which was seen by now
        assert admin(gate, "POST", f"channels/{new['channel']}/revoke", {"key_id": new["key_id"]}).status == 200
        slow.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 5, body[5:]))
        answer = slow.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (401, "unauthorized")


def test_revoked_channel_hears_nothing_more_on_its_open_stream_and_poll(gate: Client) -> None:
    campaign, new = gate.sale(), added(gate)
    order = gate.order(campaign, channel_key=new["key"]).json["order_id"]
    one = f"/v1/orders/{order}"
    until(lambda: gate.get(f"{one}/trace", new["key"]).status == 200)
    with connections(gate, 2) as [stream, poll]:
        stream.request("GET", f"{one}/events", headers=bearer(new["key"]))
        heard = stream.getresponse()
        first = heard.readline() + heard.readline() + heard.readline()
        assert b"id: 1" in first
        poll.request("GET", f"{one}?wait=20&version=1", headers=bearer(new["key"]))
        assert gate.get(one, new["key"]).status == 200  # came after the poll, which waits by now
        assert admin(gate, "POST", f"channels/{new['channel']}/revoke").status == 200
        assert gate.call("POST", f"{one}/cancel", b"", bearer(ADMIN)).status == 200  # what there is to hear
        assert b"cancel" not in heard.read()  # to the end of the stream
        assert poll.getresponse().status == 401


def test_rotation_under_load_leaves_no_gap(gate: Client) -> None:
    campaign, old = gate.sale({"red": 100_000}), added(gate)
    current, stopping = [old["key"]], threading.Event()
    answers: list[tuple[str, int]] = []

    def load(connection: http.client.HTTPConnection) -> None:
        while not stopping.is_set():
            key = current[0]
            answers.append((key, ask(connection, campaign, key).status))

    with connections(gate, 4) as opened:
        threads = [threading.Thread(target=load, args=(one,)) for one in opened]
        for one in threads:
            one.start()
        try:
            rotated = admin(gate, "POST", f"channels/{old['channel']}/rotate", {"keep_s": 60})
            assert rotated.status == 200
            new = rotated.json["key"]
            seen = len(answers)
            current[0] = new
            until(lambda: sum(key == new for key, _ in answers[seen:]) >= 20)
        finally:
            stopping.set()
            for one in threads:
                one.join()
    assert {status for _, status in answers} == {202}
    assert {key for key, _ in answers} == {old["key"], new}
    assert gate.order(campaign, channel_key=old["key"]).status == 202  # until its time is over


def test_store_that_lost_the_copy_has_it_again_and_nobody_was_shut_out(stack: Up, gate: Client) -> None:
    campaign, new = gate.sale(), added(gate)
    store = Redis.from_url(stack.ready["store"])
    try:
        assert store.delete("{s0}:access") == 1
        assert gate.order(campaign, channel_key=new["key"]).status == 202
        until(lambda: store.exists("{s0}:access"))
        assert gate.order(campaign, channel_key=new["key"]).status == 202
    finally:
        store.close()


class Told(NamedTuple):
    """What a command said."""

    status: int
    out: str
    err: str


Command = Callable[..., Told]


@pytest.fixture
def command(stack: Up, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command of an operator on the stack, in this process."""
    for name in [n for n in os.environ if n.startswith("RUSHGATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUSHGATE_DATA_DIR", str(stack.data))

    def run(*args: str) -> Told:
        return Told(cli.main(args), *capsys.readouterr())

    return run


def test_commands_of_an_operator_show_no_secret_twice(stack: Up, client: Client, command: Command) -> None:
    name = fresh("ch")
    made = json.loads(command("channel", "add", name, "--signing", "--campaigns", "a,b", "--json").out)
    assert (made["channel"], made["kind"]) == (name, "signing")
    rotated = command("channel", "rotate", name, "--bearer", "--keep", "2h").out.splitlines()
    assert rotated[1].startswith("rgk_")
    assert rotated[2] == "every other key of the channel still opens for 2h"
    shown = command("channel", "set", name, "--campaigns", "all", "--rate", "channel=500/s:1000").out
    assert shown.startswith(f"{name}: active; all campaigns; rates: channel=500/s:1000\n")
    listed = command("channel", "list").out
    assert f"{name}: active" in listed
    assert made["key_id"] in listed
    held = listed + client.call("GET", f"/v1/admin/channels/{name}", headers=bearer(ADMIN)).body.decode()
    logs = "".join(p.read_text() for p in (stack.data / "log").iterdir())
    for secret in (made["key"], rotated[1]):
        assert secret not in held
        assert secret not in logs
    assert command("block", "buyer", "mal-lory", "--for", "1h", "--reason", "resells").status == 0
    assert "mal-lory" in command("blocks").out
    assert [command("unblock", "buyer", "mal-lory").status for _ in range(2)] == [0, 1]
    assert command("channel", "revoke", name).out.startswith(f"{name}: revoked")


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("channel", "add", "Bad Name"), 2, "NAME"),
        (("channel", "add", "a,b"), 2, "NAME"),
        (("channel", "add", "x" * 33), 2, "NAME"),
        (("channel", "add", "ok-name", "--campaigns", "A B"), 2, "--campaigns"),
        (("channel", "add", "ok-name", "--rate", "channel=lots"), 1, "rates"),
        (("channel", "rotate", "no-such-channel"), 1, "no channel"),
        (("channel", "rotate", "x", "--keep", "1w"), 2, "--keep"),
        (("channel", "rotate", "x", "--keep", "999d"), 2, "--keep"),
        (("channel", "set", "x"), 2, "--campaigns, --rate"),
        (("block", "ip", "0.0.0.0/0"), 1, "every address"),
        (("block", "buyer", "a b"), 1, "blanks"),
        (("block", "ip", "1.2.3.4", "--for", "0s"), 2, "--for"),
        (("block", "ip", "1.2.3.4", "--reason", "a\nb"), 2, "--reason"),
    ],
)
def test_hostile_words_are_told_by_their_place(
    command: Command, args: tuple[str, ...], status: int, words: str
) -> None:
    told = command(*args)
    assert told.status == status
    assert words in told.err


def test_admin_calls_are_for_operators(client: Client) -> None:
    for method, path in (("GET", "channels"), ("POST", "channels"), ("GET", "blocks"), ("POST", "blocks")):
        assert admin(client, method, path, {}, "wrong").code == "unauthorized"
        assert admin(client, method, path, {}, APP_KEY).code == "operators_only"
    assert admin(client, "POST", "channels", {"channel": "../x"}).code == "invalid"
    assert admin(client, "GET", "channels/no-such").code == "unknown_channel"
    assert admin(client, "DELETE", "blocks?kind=planet&value=x").code == "invalid"
