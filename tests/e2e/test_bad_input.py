"""Everything that can be wrong with a request: the exact answer, nothing written, the connection still of use."""

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.support import APP_KEY, Client, Reply, Up, bearer, exchange, until
from tests.support import fresh

GOOD: dict[str, Any] = {"buyer_id": "b", "items": [{"sku": "red", "quantity": 1}]}
BODY_BYTES = 16_384


@pytest.fixture(scope="module")
def client(both_ways: Client) -> Client:
    """All of this file is answered alike on both ways."""
    return both_ways


def dumped(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


def item(**fields: Any) -> bytes:
    return dumped(items=[{"sku": "red", "quantity": 1} | fields])


def without(name: str) -> bytes:
    return json.dumps({k: v for k, v in GOOD.items() if k != name}).encode()


def ship(**fields: Any) -> bytes:
    return dumped(ship_to={"name": "n", "phone": "123", "address": "a"} | fields)


BODIES: dict[str, tuple[bytes, int, str, str]] = {
    # malformed: no JSON in UTF-8
    "empty": (b"", 400, "malformed", ""),
    "blank": (b"  \n ", 400, "malformed", ""),
    "text": (b"hello", 400, "malformed", ""),
    "form": (b"buyer_id=b&sku=red", 400, "malformed", ""),
    "truncated": (dumped()[:-3], 400, "malformed", ""),
    "trailing": (dumped() + b"{}", 400, "malformed", ""),
    "two lines": (dumped() + b"\n" + dumped(), 400, "malformed", ""),
    "byte order mark": (b"\xef\xbb\xbf" + dumped(), 400, "malformed", ""),
    "utf-16": (dumped().decode().encode("utf-16"), 400, "malformed", ""),
    "not utf-8": (dumped().replace(b'"b"', b'"\xff\xfe"'), 400, "malformed", ""),
    "not utf-8 as a name": (dumped().replace(b'"buyer_id"', b'"\xff"'), 400, "malformed", ""),
    "lone surrogate": (dumped().replace(b'"b"', b'"\\ud800"'), 400, "malformed", ""),
    "surrogate in address": (ship(address="@").replace(b"@", b"\\udc00"), 400, "malformed", ""),
    "raw control character": (dumped().replace(b'"b"', b'"b\x01"'), 400, "malformed", ""),
    "raw NUL": (dumped().replace(b'"b"', b'"\x00"'), 400, "malformed", ""),
    "NaN": (item(quantity=float("nan")), 400, "malformed", ""),
    # JSON of another shape
    "null": (b"null", 422, "invalid", ""),
    "list": (b"[]", 422, "invalid", ""),
    "number": (b"1", 422, "invalid", ""),
    "nothing in it": (b"{}", 422, "invalid", "buyer_id"),
    "nested lists": (b"[" * 8_000, 422, "invalid", ""),
    "nested in a field": (dumped().replace(b'"b"', b"[" * 8_000), 422, "invalid", "buyer_id"),
    "no buyer": (without("buyer_id"), 422, "invalid", "buyer_id"),
    "no items": (without("items"), 422, "invalid", "items"),
    "no sku": (b'{"buyer_id":"b","items":[{"quantity":1}]}', 422, "invalid", "items[0].sku"),
    "no quantity": (b'{"buyer_id":"b","items":[{"sku":"red"}]}', 422, "invalid", "items[0].quantity"),
    "unknown field": (dumped(price=1), 422, "invalid", "price"),
    "unknown field of an item": (item(price=1), 422, "invalid", "items[0].price"),
    "unknown field of an address": (ship(street="s"), 422, "invalid", "ship_to.street"),
    "basket empty": (dumped(items=[]), 422, "invalid", "items"),
    "basket an object": (dumped(items={}), 422, "invalid", "items"),
    "basket null": (dumped(items=None), 422, "invalid", "items"),
    "item a string": (dumped(items=["red"]), 422, "invalid", "items[0]"),
    "21 lines": (dumped(items=[{"sku": f"s{n}", "quantity": 1} for n in range(21)]), 422, "invalid", "items"),
    "same sku twice": (dumped(items=GOOD["items"] * 2), 422, "invalid", "items"),
    "unknown sku": (item(sku="green"), 422, "unknown_sku", "items[0].sku"),
    "unknown sku behind": (
        dumped(items=[*GOOD["items"], {"sku": "green", "quantity": 1}]),
        422,
        "unknown_sku",
        "items[1].sku",
    ),
    "quantity zero": (item(quantity=0), 422, "invalid", "items[0].quantity"),
    "quantity negative": (item(quantity=-1), 422, "invalid", "items[0].quantity"),
    "quantity too many": (item(quantity=1_001), 422, "invalid", "items[0].quantity"),
    "quantity beyond 64 bit": (item(quantity=2**64), 422, "invalid", "items[0].quantity"),
    "quantity with 4,000 digits": (item(quantity=-7).replace(b"-7", b"7" * 4_000), 422, "invalid", "items[0].quantity"),
    "quantity a whole float": (item(quantity=1.0), 422, "invalid", "items[0].quantity"),
    "quantity a float": (item(quantity=1.5), 422, "invalid", "items[0].quantity"),
    "quantity text": (item(quantity="1"), 422, "invalid", "items[0].quantity"),
    "quantity true": (item(quantity=True), 422, "invalid", "items[0].quantity"),
    "quantity null": (item(quantity=None), 422, "invalid", "items[0].quantity"),
    "sku a number": (item(sku=1), 422, "invalid", "items[0].sku"),
    "sku empty": (item(sku=""), 422, "invalid", "items[0].sku"),
    "sku of 65": (item(sku="s" * 65), 422, "invalid", "items[0].sku"),
    "sku of the store's own fields": (item(sku="h:red"), 422, "invalid", "items[0].sku"),
    "sku with a newline behind": (item(sku="red\n"), 422, "invalid", "items[0].sku"),
    "buyer a number": (dumped(buyer_id=1), 422, "invalid", "buyer_id"),
    "buyer empty": (dumped(buyer_id=""), 422, "invalid", "buyer_id"),
    "buyer of 65": (dumped(buyer_id="b" * 65), 422, "invalid", "buyer_id"),
    "buyer with a blank": (dumped(buyer_id="a b"), 422, "invalid", "buyer_id"),
    "buyer not ASCII": (dumped(buyer_id="müller"), 422, "invalid", "buyer_id"),
    "buyer with NUL": (dumped(buyer_id="b\0"), 422, "invalid", "buyer_id"),
    "buyer with a control character": (dumped(buyer_id="b\x1b"), 422, "invalid", "buyer_id"),
    "buyer with a newline behind": (dumped(buyer_id="b\n"), 422, "invalid", "buyer_id"),
    "device of 129": (dumped(device_id="d" * 129), 422, "invalid", "device_id"),
    "device empty": (dumped(device_id=""), 422, "invalid", "device_id"),
    "ip empty": (dumped(client_ip=""), 422, "invalid", "client_ip"),
    "ip words": (dumped(client_ip="localhost"), 422, "invalid", "client_ip"),
    "ip out of range": (dumped(client_ip="10.0.0.256"), 422, "invalid", "client_ip"),
    "ip too short": (dumped(client_ip="10.0.0"), 422, "invalid", "client_ip"),
    "ip with zone": (dumped(client_ip="fe80::1%eth0"), 422, "invalid", "client_ip"),
    "ip with port": (dumped(client_ip="10.0.0.1:80"), 422, "invalid", "client_ip"),
    "ip with NUL": (dumped(client_ip="10.0.0.1\0"), 422, "invalid", "client_ip"),
    "name of 101": (ship(name="n" * 101), 422, "invalid", "ship_to.name"),
    "address of 301": (ship(address="a" * 301), 422, "invalid", "ship_to.address"),
    "address with NUL": (ship(address="a\0"), 422, "invalid", "ship_to.address"),
    "address with a newline": (ship(address="a\nb"), 422, "invalid", "ship_to.address"),
    "phone letters": (ship(phone="call me"), 422, "invalid", "ship_to.phone"),
    "country small": (ship(country="cn"), 422, "invalid", "ship_to.country"),
    # too much of it
    "10,000 skus": (
        dumped(items=[{"sku": f"s{n}", "quantity": 1} for n in range(10_000)]),
        413,
        "too_large",
        "",
    ),
    "100,000 brackets": (b"[" * 100_000, 413, "too_large", ""),
    "one byte too many": (dumped() + b" " * (BODY_BYTES + 1 - len(dumped())), 413, "too_large", ""),
    "a megabyte": (b" " * 1_000_000, 413, "too_large", ""),
    "ten megabytes": (b" " * 10_000_000, 413, "too_large", ""),
}


@pytest.fixture(scope="module")
def sale(client: Client) -> str:
    return client.sale({"red": 1_000})


@pytest.fixture
def connection(client: Client) -> Iterator[http.client.HTTPConnection]:
    """A keep-alive connection; it must serve a good request after the bad one."""
    found = http.client.HTTPConnection(client.host, client.port, timeout=20)
    yield found
    found.close()


@pytest.fixture
def nothing_written(client: Client, sale: str) -> Iterator[None]:
    """The audit counts as many orders after the test as before."""
    before = client.audit(sale)
    yield
    after = client.audit(sale)
    assert (after["accepted"], after["unsold"]) == (before["accepted"], before["unsold"])
    assert after["findings"] == []


def headers(**more: str) -> dict[str, str]:
    return bearer(APP_KEY) | {"Idempotency-Key": fresh("key")} | more


def judge(reply: Reply, status: int, code: str, field: str = "") -> None:
    """A problem as RFC 9457 and our table want it."""
    assert (reply.status, reply.code, reply.json.get("field", "")) == (status, code, field)
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json["status"] == status
    assert reply.json["type"] == f"/problems/{code}"
    assert reply.json["title"]


def still_of_use(connection: http.client.HTTPConnection) -> None:
    sock = connection.sock
    assert exchange(connection, "GET", "/livez").status == 200
    assert connection.sock is sock, "the connection was closed"


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("name", BODIES)
def test_order_with_bad_body_is_refused(connection: http.client.HTTPConnection, sale: str, name: str) -> None:
    body, status, code, field = BODIES[name]
    reply = exchange(connection, "POST", f"/v1/campaigns/{sale}/orders", body, headers())
    judge(reply, status, code, field)
    still_of_use(connection)


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[n : n + size] for n in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("size", [BODY_BYTES + 1, 200_000, 3_000_000])
@pytest.mark.parametrize("path", ["orders", "orders:batch"])
def test_chunked_body_over_the_limit_is_413_and_the_rest_is_skipped(
    connection: http.client.HTTPConnection, sale: str, size: int, path: str
) -> None:
    if path == "orders:batch":
        size += 4_194_304
    connection.connect()
    assert connection.sock is not None
    sent = chunked(b" " * size, 8_000)
    more = headers(**{"Transfer-Encoding": "chunked"})
    connection.putrequest("POST", f"/v1/campaigns/{sale}/{path}")
    for name, value in more.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(sent)
    answer = connection.getresponse()
    reply = Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    judge(reply, 413, "too_large")
    still_of_use(connection)


def test_chunked_body_within_the_limit_is_an_order(client: Client, sale: str) -> None:
    body = chunked(dumped(), 7)
    reply = raw(client, request(sale, b"", chunk=True) + body)
    assert reply.startswith(b"HTTP/1.1 202 ")


KEYS: dict[str, tuple[str | None, int, str]] = {
    "none": (None, 400, "key_missing"),
    "empty": ("", 400, "key_missing"),
    "65 characters": ("k" * 65, 400, "key_invalid"),
    "5,000 characters": ("k" * 5_000, 400, "key_invalid"),
    "a blank inside": ("a b", 400, "key_invalid"),
    "a tab inside": ("a\tb", 400, "key_invalid"),
    "not ASCII": ("schlüssel", 400, "key_invalid"),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("name", KEYS)
def test_order_with_bad_key_is_refused(connection: http.client.HTTPConnection, sale: str, name: str) -> None:
    key, status, code = KEYS[name]
    more = bearer(APP_KEY) | ({} if key is None else {"Idempotency-Key": key})
    reply = exchange(connection, "POST", f"/v1/campaigns/{sale}/orders", dumped(), more)
    judge(reply, status, code)
    still_of_use(connection)


@pytest.mark.parametrize("key", ["k", "!" * 64, "a/b:c~", "{}\"'"])
def test_order_with_odd_but_good_key_is_taken(client: Client, sale: str, key: str) -> None:
    assert client.order(sale, key=key, buyer="odd").status == 202
    assert client.order(sale, key=key, buyer="odd").headers["idempotent-replayed"] == "true"


PATHS: dict[str, tuple[str, str, int, str]] = {
    "orders by GET": ("GET", "/v1/campaigns/{}/orders", 405, "method_not_allowed"),
    "orders by PUT": ("PUT", "/v1/campaigns/{}/orders", 405, "method_not_allowed"),
    "orders by DELETE": ("DELETE", "/v1/campaigns/{}/orders", 405, "method_not_allowed"),
    "orders by OPTIONS": ("OPTIONS", "/v1/campaigns/{}/orders", 405, "method_not_allowed"),
    "batch by GET": ("GET", "/v1/campaigns/{}/orders:batch", 405, "method_not_allowed"),
    "campaign by POST": ("POST", "/v1/campaigns/{}", 405, "method_not_allowed"),
    "admin by PATCH": ("PATCH", "/v1/admin/campaigns/{}", 405, "method_not_allowed"),
    "open by GET": ("GET", "/v1/admin/campaigns/{}/open", 405, "method_not_allowed"),
    "health by POST": ("POST", "/livez", 405, "method_not_allowed"),
    "root": ("GET", "/", 404, "not_found"),
    "unknown": ("GET", "/v2/campaigns/{}", 404, "not_found"),
    "slash behind": ("GET", "/livez/", 404, "not_found"),
    "orders with slash behind": ("POST", "/v1/campaigns/{}/orders/", 404, "not_found"),
    "no campaign": ("POST", "/v1/campaigns//orders", 404, "not_found"),
    "campaigns": ("POST", "/v1/campaigns/orders:batch", 405, "method_not_allowed"),
    "encoded slash": ("POST", "/v1/campaigns/{}%2Fx/orders", 404, "unknown_campaign"),
    "encoded NUL": ("POST", "/v1/campaigns/{}%00/orders", 404, "unknown_campaign"),
    "encoded NUL of a view": ("GET", "/v1/campaigns/{}%00", 404, "unknown_campaign"),
    "encoded newline": ("POST", "/v1/campaigns/{}%0A/orders", 404, "unknown_campaign"),
    "encoded percent": ("POST", "/v1/campaigns/{}%25/orders", 404, "unknown_campaign"),
    "percent alone": ("POST", "/v1/campaigns/{}%/orders", 404, "unknown_campaign"),
    "encoded braces": ("POST", "/v1/campaigns/%7Bs1%7D/orders", 404, "unknown_campaign"),
    "dots": ("POST", "/v1/campaigns/../orders", 404, "unknown_campaign"),
    "long": ("POST", "/v1/campaigns/" + "x" * 10_000 + "/orders", 404, "unknown_campaign"),
    "batch of unknown campaign": ("POST", "/v1/campaigns/no-such/orders:batch", 404, "unknown_campaign"),
    "batch of encoded NUL": ("POST", "/v1/campaigns/{}%00/orders:batch", 404, "unknown_campaign"),
    "unknown problem": ("GET", "/problems/no-such", 404, "not_found"),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("name", PATHS)
def test_path_or_method_that_is_not_served_is_told(
    connection: http.client.HTTPConnection, sale: str, name: str
) -> None:
    method, path, status, code = PATHS[name]
    body = dumped(request_key="k") if "batch" in path else dumped()
    reply = exchange(connection, method, path.replace("{}", sale), body, headers())
    judge(reply, status, code)
    assert ("allow" in reply.headers) == (status == 405)
    still_of_use(connection)


def test_method_not_allowed_names_all_that_are(client: Client, sale: str) -> None:
    allowed = client.call("DELETE", f"/v1/admin/campaigns/{sale}").headers["allow"]
    assert {"GET", "PUT"} <= set(allowed.replace(" ", "").split(","))
    assert client.call("GET", f"/v1/campaigns/{sale}/orders").headers["allow"] == "POST"


ADMIN_BODIES: dict[str, tuple[str, str, bytes, int, str, str]] = {
    "put nothing": ("PUT", "", b"", 400, "malformed", ""),
    "put a list": ("PUT", "", b"[]", 422, "invalid", ""),
    "put 100,000 brackets": ("PUT", "", b'{"skus":' + b"[" * 100_000, 422, "invalid", "skus[0]"),
    "put not utf-8": ("PUT", "", b'{"currency":"\xff"}', 400, "malformed", ""),
    "put two megabytes": ("PUT", "", b" " * 2_000_000, 413, "too_large", ""),
    "put a time without zone": ("PUT", "", b'{"opens_at":"2026-01-01T00:00:00"}', 422, "invalid", "opens_at"),
    "restock nothing": ("POST", "/restock", b"", 400, "malformed", ""),
    "restock a float": ("POST", "/restock", b'{"id":"i","sku":"red","units":1.5}', 422, "invalid", "units"),
    "restock too much": ("POST", "/restock", b'{"id":"i","sku":"red","units":100000001}', 422, "invalid", "units"),
    "restock without id": ("POST", "/restock", b'{"sku":"red","units":1}', 422, "invalid", "id"),
    "restock with NUL": ("POST", "/restock", b'{"id":"i\\u0000","sku":"red","units":1}', 422, "invalid", "id"),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("name", ADMIN_BODIES)
def test_admin_call_with_bad_body_is_refused(
    connection: http.client.HTTPConnection, client: Client, sale: str, name: str
) -> None:
    method, call, body, status, code, field = ADMIN_BODIES[name]
    reply = exchange(connection, method, f"/v1/admin/campaigns/{sale}{call}", body, bearer(client.admin_token))
    judge(reply, status, code, field)
    still_of_use(connection)


def request(sale: str, body: bytes, key: str = "", chunk: bool = False, more: str = "") -> bytes:
    """The bytes of an order."""
    length = "transfer-encoding: chunked" if chunk else f"content-length: {len(body)}"
    head = (
        f"POST /v1/campaigns/{sale}/orders HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {APP_KEY}\r\n"
        f"idempotency-key: {key or fresh('key')}\r\n{length}\r\n{more}\r\n"
    )
    return head.encode() + body


def dial(client: Client) -> socket.socket:
    return socket.create_connection((client.host, client.port), timeout=20)


def raw(client: Client, data: bytes, answers: int = 1) -> bytes:
    """What comes back for these bytes, until so many whole answers are there or the server closes."""
    with dial(client) as sock:
        sock.sendall(data)
        return read_answers(sock, answers)


def read_answers(sock: socket.socket, answers: int) -> bytes:
    found = b""
    while count_answers(found) < answers:
        part = sock.recv(65_536)
        if not part:
            break
        found += part
    return found


def count_answers(data: bytes) -> int:
    """Whole answers in `data`, each with a content-length."""
    count = 0
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lengths = [int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")]
        size = lengths[0] if lengths else 0
        if len(rest) < size:
            break
        data = rest[size:]
        count += b" 100 " not in head.split(b"\r\n")[0]
    return count


def test_expect_continue_is_answered_before_the_body(client: Client, sale: str) -> None:
    body = dumped()
    with dial(client) as sock:
        sock.sendall(request(sale, body, more="expect: 100-continue\r\n")[: -len(body)])
        assert sock.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_answers(sock, 1).startswith(b"HTTP/1.1 202 ")


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    ("wrong", "right", "status"),
    [(APP_KEY, "wrong-key-0000000000", 401), ("length: ", "length: 9999", 413), ("key: ", "kee: ", 400)],
)
def test_expect_continue_that_is_refused_closes_so_that_no_request_is_taken_for_the_body(
    client: Client, sale: str, wrong: str, right: str, status: int
) -> None:
    body = dumped()
    head = request(sale, body, more="expect: 100-continue\r\n")[: -len(body)]
    assert wrong.encode() in head
    found = raw(client, head.replace(wrong.encode(), right.encode()), 2)
    assert found.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in found


def test_pipelined_requests_are_answered_in_order(client: Client, sale: str) -> None:
    keys = [fresh("pipe") for _ in range(10)]
    found = raw(client, b"".join(request(sale, dumped(), key) for key in [*keys, keys[0]]), 11)
    assert count_answers(found) == 11
    orders = [json.loads(part.split(b"\r\n\r\n")[1].split(b"HTTP/1.1")[0]) for part in found.split(b"HTTP/1.1 202")[1:]]
    assert [o["order_id"] for o in orders] == [
        client.order(sale, "b", key).json["order_id"] for key in [*keys, keys[0]]
    ]


@pytest.mark.usefixtures("nothing_written")
def test_good_request_behind_a_bad_one_in_a_pipeline_is_answered(client: Client, sale: str) -> None:
    tail = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    found = raw(client, request(sale, b"{") + request(sale, b" " * 50_000) + tail, 3)
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"400", b"413", b"200"]


@pytest.mark.parametrize(("path", "status"), [("/livez", 200), ("/v1/campaigns/{}/orders", 405), ("/no", 404)])
def test_head_is_answered_without_a_body(client: Client, sale: str, path: str, status: int) -> None:
    tail = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    head = f"HEAD {path.replace('{}', sale)} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    with dial(client) as sock:
        sock.sendall(head + tail)
        found = b""
        while part := sock.recv(65_536):
            found += part
    first, second = found.split(b"HTTP/1.1 ")[1:]
    assert (int(first[:3]), int(second[:3])) == (status, 200)
    assert first.endswith(b"\r\n\r\n")


def test_head_of_an_admin_call_is_answered(client: Client, sale: str) -> None:
    reply = client.call("HEAD", f"/v1/admin/campaigns/{sale}", headers=bearer(client.admin_token))
    assert (reply.status, reply.body) == (200, b"")


def test_slow_body_in_pieces_is_an_order(client: Client, sale: str) -> None:
    body = dumped()
    data = request(sale, body)
    with dial(client) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for n in range(0, len(data), 17):
            sock.sendall(data[n : n + 17])
            assert client.call("GET", "/livez").status == 200
        assert read_answers(sock, 1).startswith(b"HTTP/1.1 202 ")


@pytest.mark.usefixtures("nothing_written")
def test_client_gone_in_mid_body_leaves_nothing(client: Client, sale: str) -> None:
    key = fresh("gone")
    for cut in (1, 20, 52):
        with dial(client) as sock:
            sock.sendall(request(sale, dumped(), key)[:-cut])
    assert client.call("GET", "/livez").status == 200


def test_client_gone_before_the_answer_finds_its_order_by_the_same_key(client: Client) -> None:
    campaign = client.sale({"red": 50})
    keys = [fresh("gone") for _ in range(50)]
    for key in keys:
        with dial(client) as sock:
            sock.sendall(request(campaign, dumped(), key))
    until(lambda: client.audit(campaign)["accepted"] == 50)
    again = [client.order(campaign, "b", key) for key in keys]
    assert {(r.status, r.headers.get("idempotent-replayed")) for r in again} == {(202, "true")}
    assert client.settled_audit(campaign)["ok"]


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50,
        b"GET / HTTP/9.9\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST /v1/campaigns/\xff/orders HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nbad header: \x00\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nidempotency-key: a\x7fb\r\n\r\n",
    ],
)
def test_bytes_that_are_no_http_are_400_and_the_gateway_goes_on(client: Client, data: bytes) -> None:
    found = raw(client, data)
    assert found.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 "))
    assert client.call("GET", "/livez").status == 200


@pytest.mark.parametrize("kind", ["one header", "many headers", "url"])
def test_head_without_end_is_cut_off_and_costs_no_memory(stack: Up, kind: str) -> None:
    """A client that never stops sending headers is answered 431 and loses its connection."""
    start, piece = {
        "one header": (b"GET /livez HTTP/1.1\r\nhost: x\r\nx-long: ", b"a" * 16_384),
        "many headers": (b"GET /livez HTTP/1.1\r\nhost: x\r\n", b"x-many: a\r\n" * 1_024),
        "url": (b"GET /", b"a" * 16_384),
    }[kind]
    sent = 0
    answer = b""
    with socket.create_connection((stack.client.host, stack.client.port), timeout=10) as connection:
        connection.sendall(start)
        try:
            while sent < 20_000_000:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            answer = connection.recv(65_536)
    assert sent < 20_000_000
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    assert stack.client.call("GET", "/livez").status == 200
