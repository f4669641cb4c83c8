"""TLS everywhere: between client and gateway, gateway and store, workers and ledger; and none with a stranger."""

import http.client
import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from cryptography import x509

from tests.e2e.conftest import own_gateway
from tests.e2e.support import ADMIN, APP_KEY, KEYS, Client, Part, Up, command, definition, until
from tests.support import fresh
from tests.tls import TlsFront, served


class Secured(NamedTuple):
    """A stack all of whose connections are TLS."""

    up: Up
    store: TlsFront
    ledger: TlsFront
    authority: trustme.CA
    folder: Path


def ledger_socket(dsn: str) -> str:
    """Of an embedded Postgres."""
    options = parse_qs(urlsplit(dsn).query)
    return f"{options['host'][0]}/.s.PGSQL.{options['port'][0]}"


def urls(stack: Up, store: TlsFront, ledger: TlsFront, ca: Path) -> dict[str, str]:
    """The settings for store and ledger through TLS, verified against `ca`."""
    parts = urlsplit(stack.ready["store"])
    dsn = urlsplit(stack.ready["ledger"])
    secret, who = parts.netloc.rpartition("@")[0], dsn.netloc.rpartition("@")[0]
    return {
        "RUSHGATE_STORE_URL": f"rediss://{secret}@localhost:{store.port}{parts.path}?ssl_ca_certs={ca}",
        "RUSHGATE_LEDGER_DSN": (
            f"postgresql://{who}@localhost:{ledger.port}{dsn.path}?sslmode=verify-full&sslrootcert={ca}"
        ),
    }


def write_certificate(authority: trustme.CA, folder: Path) -> int:
    """A new certificate of the authority is in the folder; its serial number."""
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    folder.joinpath("cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return serial((folder / "cert.pem").read_text())


def serial(pem: str) -> int:
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


@pytest.fixture(scope="module")
def secured(stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder: Path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    write_certificate(authority, folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    parts = urlsplit(stack.ready["store"])
    store = TlsFront(context, (parts.hostname or "", parts.port or 6379))
    ledger = TlsFront(context, ledger_socket(stack.ready["ledger"]), postgres=True)
    with served(store, ledger):
        env = KEYS | urls(stack, store, ledger, folder / "ca.pem") | {
            "RUSHGATE_TLS_CERT": str(folder / "cert.pem"), "RUSHGATE_TLS_KEY": str(folder / "key.pem"),
            "RUSHGATE_REQUEST_TIMEOUT_S": "2",
        }  # fmt: skip
        up = Up(folder / "d", "--port", "0", env=env)
        try:
            yield Secured(up.wait_ready(), store, ledger, authority, folder)
        finally:
            up.end()


def call(
    secured: Secured, method: str, path: str, body: object = None, key: str = APP_KEY, **more: str
) -> tuple[int, dict[str, str], bytes]:
    """One request over HTTPS, the certificate checked."""
    context = ssl.create_default_context(cafile=str(secured.folder / "ca.pem"))
    parts = urlsplit(secured.up.ready["gateway"])
    connection = http.client.HTTPSConnection("127.0.0.1", parts.port, context=context, timeout=10)
    try:
        headers = {"authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in more.items()}}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_order_over_tls_from_the_client_to_the_row(secured: Secured) -> None:
    assert secured.up.ready["gateway"].startswith("https://")
    campaign = fresh("tls")
    assert call(secured, "PUT", f"/v1/admin/campaigns/{campaign}", definition({"red": 3}), ADMIN)[0] in (200, 201)
    assert call(secured, "POST", f"/v1/admin/campaigns/{campaign}/open", key=ADMIN)[0] == 200
    order = {"buyer_id": "b", "items": [{"sku": "red", "quantity": 1}]}
    status, head, _ = call(secured, "POST", f"/v1/campaigns/{campaign}/orders", order, idempotency_key="k")
    assert status == 202

    def drained() -> bool:
        found = json.loads(call(secured, "GET", f"/v1/admin/campaigns/{campaign}/audit", key=ADMIN)[2])
        return bool(found["ok"] and found["persisted"] == 1)

    until(drained)
    assert call(secured, "GET", head["location"])[0] == 200
    assert secured.store.handshakes > 3  # gateway, ledger worker, relay, reconcile: none of them past it
    assert secured.ledger.handshakes > 3


def test_plain_http_to_a_tls_port_gets_nothing(secured: Secured) -> None:
    plain = Client(secured.up.ready["gateway"].replace("https", "http"))
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.get("/livez")


def test_client_that_never_shakes_hands_is_cut_off(secured: Secured) -> None:
    parts = urlsplit(secured.up.ready["gateway"])
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=15) as silent:
        assert silent.recv(1) == b""  # 2 s, and what a busy machine adds; the event loop's own limit is a minute


def test_new_certificate_without_a_restart(secured: Secured) -> None:
    """SIGHUP; a bad file changes nothing, and is told."""
    parts = urlsplit(secured.up.ready["gateway"])
    port = parts.port or 0
    (gateway,) = secured.up.children("gateway")
    log = secured.folder / "d" / "log" / "gateway-1.log"

    def served_serial() -> int:
        return serial(ssl.get_server_certificate(("127.0.0.1", port)))

    fresh_serial = write_certificate(secured.authority, secured.folder)
    assert served_serial() != fresh_serial
    os.kill(gateway, signal.SIGHUP)
    until(lambda: served_serial() == fresh_serial)

    good = (secured.folder / "key.pem").read_bytes()
    (secured.folder / "key.pem").write_text("no key")
    os.kill(gateway, signal.SIGHUP)
    until(lambda: "certificate not read again" in log.read_text())
    assert served_serial() == fresh_serial
    (secured.folder / "key.pem").write_bytes(good)
    assert call(secured, "GET", "/livez")[0] == 200


def test_hangup_without_a_certificate_ends_nothing(stack: Up, tmp_path: Path) -> None:
    """`systemctl reload` of a gateway behind a proxy, and a `kill -HUP` that was meant for another stack."""
    for args, serves in (["gateway"], "gateway serves"), (["console"], "console serves"):
        part = Part(tmp_path / args[0], args, own_gateway(stack) | {"RUSHGATE_CONSOLE_PORT": "0"})
        try:
            until(lambda part=part, serves=serves: serves in part.text)  # type: ignore[misc]
            part.process.send_signal(signal.SIGHUP)
            until(lambda part=part: "certificate not read again" in part.text)  # type: ignore[misc]
            assert part.process.poll() is None
        finally:
            assert part.end() == 0


@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_store_and_ledger_of_a_stranger_are_not_spoken_to(
    secured: Secured, stack: Up, tmp_path: Path, wrong: str
) -> None:
    """A certificate of another authority, or for another name."""
    authority, name = (secured.authority, "other.example") if wrong == "name" else (trustme.CA(), "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    parts = urlsplit(stack.ready["store"])
    store = TlsFront(context, (parts.hostname or "", parts.port or 6379))
    ledger = TlsFront(context, ledger_socket(stack.ready["ledger"]), postgres=True)
    with served(store, ledger):
        env = urls(stack, store, ledger, secured.folder / "ca.pem")
        part = Part(tmp_path / "log", ["gateway"], own_gateway(stack) | env)
        try:
            client = part.gateway()
            assert client.get("/readyz").status == 503
            assert client.admin("GET", "none/audit").status == 503
        finally:
            part.end()
        doctor = command("doctor", env=KEYS | env)
    assert doctor.returncode == 1
    assert (doctor.stdout + doctor.stderr).lower().count("certificate verify failed") >= 2
    assert (store.handshakes, ledger.handshakes) == (0, 0)


@pytest.mark.parametrize("missing", ["RUSHGATE_TLS_CERT", "RUSHGATE_TLS_KEY"])
def test_half_of_a_certificate_is_told(stack: Up, secured: Secured, missing: str) -> None:
    env = {"RUSHGATE_TLS_CERT": str(secured.folder / "cert.pem"), "RUSHGATE_TLS_KEY": str(secured.folder / "key.pem")}
    env[missing] = str(secured.folder / "nothing.pem")
    said = command("gateway", env=own_gateway(stack) | env)
    assert said.returncode == 78
    assert "RUSHGATE_TLS_CERT, RUSHGATE_TLS_KEY: No such file" in said.stderr
    del env[missing]
    said = command("gateway", env=own_gateway(stack) | env)
    assert said.returncode == 78
    assert "go together" in said.stderr
