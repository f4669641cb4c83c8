"""No secret where others can read it: a whole stack's logs, command lines, answers, files and reports, from its start.

Each secret of the stack is one of ours, so that it can be looked for; what is drawn is read from the ready line.
"""

import base64
import contextlib
import json
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from core.request_signing import sign
from ops.embedded import command_line, process_ids
from tests.e2e.support import Client, Part, Up, bearer, command, until
from tests.support import fresh

WORDS = ("admin", "app", "web", "ticket-one", "ticket-two", "signing", "captcha")
SECRETS = {word: f"QzSentinel-{word}-9x7Kp2LmN4vB" for word in WORDS}
WEBHOOK = {word: "whsec_" + base64.b64encode(f"QzSentinel-{word}-9x7Kp2LmN4vB".encode()).decode()
           for word in ("payment", "partner")}  # fmt: skip
ENV = {
    "RUSHGATE_ADMIN_TOKEN": SECRETS["admin"],
    "RUSHGATE_CHANNEL_KEYS": f"app={SECRETS['app']},web={SECRETS['web']}",
    "RUSHGATE_PAYMENT_SECRETS": WEBHOOK["payment"],
    "RUSHGATE_PARTNER_SECRETS": WEBHOOK["partner"],
    "RUSHGATE_TICKET_SECRETS": f"{SECRETS['ticket-one']},{SECRETS['ticket-two']}",
    "RUSHGATE_SIGNING_SECRETS": SECRETS["signing"],
    "RUSHGATE_CAPTCHA_URL": "http://127.0.0.1:9/siteverify",
    "RUSHGATE_CAPTCHA_SECRET": SECRETS["captcha"],
    "RUSHGATE_PARTNERS_URL": "http://127.0.0.1:9",
    "RUSHGATE_LOG_LEVEL": "debug",
    "RUSHGATE_CONSOLE": "on",
    "RUSHGATE_CONSOLE_PORT": "0",
}


class Told(NamedTuple):
    """All that a stack has told from its start to its end, and what it must not tell."""

    secrets: dict[str, str]
    logs: dict[str, str]
    lines: set[str]  # command lines of all processes of this machine meanwhile
    answers: list[str]
    printed: dict[str, str]  # what commands of operators printed and wrote
    files: list[tuple[str, int, bool]]  # of the data directory: name, mode, whether a secret is in it
    ready: str
    shut_socket: bool  # nobody but its users can come to the ledger's socket


class Watching:
    """Reads the command lines of all processes, also of those that live for a moment."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watching":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            for pid in process_ids():
                with contextlib.suppress(OSError):
                    self.seen.add(" ".join(command_line(pid)))


def lived(up: Up) -> tuple[list[str], dict[str, str]]:
    """A day in the life of a stack, good and bad: all answers, and the keys that were made."""
    client, answers = up.client, []

    def note(method: str, path: str, body: object = None, key: str = "", **headers: str) -> Client:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = client.call(method, path, data, (bearer(key) if key else {}) | named)
        answers.append(f"{method} {path} {reply.status} {reply.headers} {reply.body.decode('utf-8', 'replace')}")
        return reply  # type: ignore[return-value]

    admin, app = SECRETS["admin"], SECRETS["app"]
    made = {
        kind: client.call(
            "POST", "/v1/admin/channels", json.dumps({"channel": kind, "kind": kind}).encode(), bearer(admin)
        ).json
        for kind in ("bearer", "signing")
    }  # fmt: skip
    open_ = client.sale({"red": 50})
    room = client.sale({"red": 5}, admission="room", room={"channel": "app", "captcha": True})
    orders = f"/v1/campaigns/{open_}/orders"
    order = {"buyer_id": "b", "items": [{"sku": "red", "quantity": 1}]}
    for key in (app, SECRETS["web"], app + "x", admin, made["bearer"]["key"], "rgt1.e30.e30"):
        note("POST", orders, order, key, idempotency_key=fresh("k"))
        note("POST", orders, b'{"buyer_id":', key, idempotency_key=fresh("k"))
        note("POST", orders + ":batch", b"{}", key)
        note("GET", "/v1/orders?limit=x", None, key)
        note("PUT", f"/v1/admin/campaigns/{open_}", {}, key)
        note("GET", "/v1/admin/channels", None, key)
    signed = sign(made["signing"]["key"], made["signing"]["key_id"], int(time.time()), "POST", orders, b"{}", "k")
    note("POST", orders, b"{ }", "", **{k.replace("-", "_"): v for k, v in signed.items()}, idempotency_key="k")
    note("POST", f"/v1/campaigns/{open_}/tickets", {"buyer_id": "b"}, app)
    note("POST", f"/v1/campaigns/{room}/line/challenge", {"guest_key": "g" * 20})
    note("POST", f"/v1/campaigns/{room}/line", {"guest_key": "g" * 20, "captcha": "x"})
    note("POST", "/v1/payments/callback", b"{}", webhook_id="a", webhook_timestamp="1", webhook_signature="v1,AAAA")
    for path in (
        "/openapi.json",
        "/readyz",
        "/livez",
        "/metrics",
        "/problems/unauthorized",
        f"/v1/orders/{fresh('x')}",
    ):
        note("GET", path, None, admin if path == "/metrics" else app)
    parts = urlsplit(up.ready["console"])
    console = Client(f"http://{parts.netloc}")
    for token in (admin + "x", admin):
        reply = console.call(
            "POST", "/console/api/login", json.dumps({"token": token}).encode(), {"content-type": "application/json"}
        )
        answers.append(f"login {reply.status} {reply.headers} {reply.body.decode()}")
    cookie = reply.headers["set-cookie"].partition(";")[0]
    for path in ("session", "access", "workers"):
        reply = console.call("GET", f"/console/api/{path}", None, {"cookie": cookie})
        answers.append(f"{path} {reply.status} {reply.headers} {reply.body.decode()}")
    assert '"csrf"' in answers[-3]
    return answers, {kind: str(found["key"]) for kind, found in made.items()} | {"campaign": open_}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder: Path = tmp_path_factory.mktemp("secrets")
    with Watching() as watching:
        up = Up(folder / "d", "--port", "0", env=ENV)
        try:
            up.wait_ready()
            answers, made = lived(up)
            report = [folder / "rush.json", folder / "rush.html", folder / "rush.hgrm"]
            rush = [
                "rush", "--url", up.ready["gateway"], "--campaign", made.pop("campaign"), "--buyers", "50",
                "--spread-s", "0.1", "--connections", "4", "--json", str(report[0]), "--report", str(report[1]),
                "--hdr", str(report[2]),
            ]  # fmt: skip
            wanted = (["doctor"], ["channel", "list"], ["metrics"], rush)
            with ThreadPoolExecutor(len(wanted)) as pool:
                done = list(pool.map(lambda words: up.command(*words, RUSHGATE_CHANNEL_KEY=SECRETS["app"]), wanted))
            printed = {words[0]: one.stdout + one.stderr for words, one in zip(wanted, done, strict=True)}
            printed |= {path.name: path.read_text() for path in report}
            store = urlsplit(up.ready["store"]).password or ""
            secrets = SECRETS | WEBHOOK | made | {"store password": store}
            assert all(len(text) > 15 for text in secrets.values()), secrets.keys()
            files = [
                (str(path.relative_to(folder)), path.lstat().st_mode, holds(path, secrets))
                for path in sorted((folder / "d").rglob("*"))
                if not path.is_symlink()
            ]
            shut = unreachable(Path(parse_qs(urlsplit(up.ready["ledger"]).query)["host"][0]))
        finally:
            up.end()
    logs = {path.name: path.read_text() for path in (folder / "d" / "log").iterdir()} | {"up": up.stderr.read_text()}
    return Told(secrets, logs, watching.seen, answers, printed, files, json.dumps(up.ready), shut)


def unreachable(folder: Path) -> bool:
    """Whether others cannot pass to what is in the folder."""
    return any(not one.stat().st_mode & stat.S_IXOTH for one in (folder, *folder.parents))


def holds(path: Path, secrets: dict[str, str]) -> bool:
    """Whether a secret is in the file."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return any(secret.encode() in content for secret in secrets.values())


def leaks(secrets: dict[str, str], texts: dict[str, str]) -> list[tuple[str, str]]:
    """Which secret stands in which text, whole or without its prefix."""
    bare = {name: text.removeprefix("whsec_") for name, text in secrets.items()}
    return [(name, place) for place, text in texts.items() for name, secret in bare.items() if secret in text]


def test_control_the_ready_line_is_found_to_hold_secrets(told: Told) -> None:
    """It is meant to: the only thing that tells them, on the stdout of who started the stack."""
    found = {name for name, _ in leaks(told.secrets, {"ready": told.ready})}
    assert {"admin", "app", "payment", "partner", "store password"} <= found


def test_no_secret_in_any_log(told: Told) -> None:
    assert {"gateway-1.log", "ledger-1.log", "relay-1.log", "console-1.log", "up"} <= told.logs.keys()
    assert '"level":"debug"' in "".join(told.logs.values()) or "channels read" in "".join(told.logs.values())
    assert leaks(told.secrets, told.logs) == []


def test_no_secret_on_any_command_line(told: Told) -> None:
    assert any("worker ledger" in line for line in told.lines)
    assert leaks(told.secrets, {line: line for line in told.lines}) == []


def test_no_secret_in_any_answer(told: Told) -> None:
    """Errors, documents, metrics, listings; only who makes a key is told it, once."""
    assert {int(answer.split()[2]) for answer in told.answers if answer.startswith("P")} >= {202, 400, 401, 403}
    assert leaks(told.secrets, {answer: answer for answer in told.answers}) == []


def test_no_secret_in_what_commands_print_and_reports_hold(told: Told) -> None:
    assert "accepted" in told.printed["rush.json"]
    assert leaks(told.secrets, told.printed) == []


def test_files_with_a_secret_are_for_their_user_alone(told: Told) -> None:
    assert [name for name, _, held in told.files if held]
    assert [(name, oct(mode)) for name, mode, held in told.files if held and mode & 0o077] == []


def test_nothing_of_a_stack_can_be_written_or_read_by_others(told: Told) -> None:
    """Sockets stand in directories that let others pass at most where the ledger's own user must."""
    shut = [Path(name) for name, mode, _ in told.files if stat.S_ISDIR(mode) and not mode & 0o077]
    loose = [
        (name, oct(mode)) for name, mode, _ in told.files
        if mode & 0o066 and not any(folder in Path(name).parents for folder in shut)
    ]  # fmt: skip
    assert loose == []
    [host] = parse_qs(urlsplit(json.loads(told.ready)["ledger"]).query)["host"]
    assert told.shut_socket, host


S = "QzSentinel9x7Kp2LmN4vB"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("STORE_URL", f"redis://:{S}/x@127.0.0.1:1/0"),
        ("LEDGER_DSN", f"postgresql://x:{S}/x@127.0.0.1:1/x"),
        ("PARTNERS_URL", f"http://u:{S}/x@h:1/"),
        ("CAPTCHA_URL", f"http://u:{S}/x@h:1/"),
        ("PAYMENT_SECRETS", f"whsec_{S}!"),
        ("PARTNER_SECRETS", S),
    ],
)
def test_start_with_a_wrong_setting_tells_no_secret(setting: str, text: str) -> None:
    """It ends with 78, and names the setting. More of them: tests/unit/test_urls.py, test_secret_care.py."""
    there = {
        "RUSHGATE_STORE_URL": "redis://127.0.0.1:1/0", "RUSHGATE_LEDGER_DSN": "postgresql://x@127.0.0.1:1/x",
        "RUSHGATE_PORT": "0",
    }  # fmt: skip
    there |= {"RUSHGATE_PARTNERS_URL": "http://127.0.0.1:1"} if setting.startswith("PARTNER_") else {}
    part = ("worker", "relay") if setting.startswith("PARTNER") else ("gateway",)
    done = command(*part, env=there | {f"RUSHGATE_{setting}": text, "RUSHGATE_LOG_LEVEL": "debug"})
    assert done.returncode == 78, done.stderr
    assert f"RUSHGATE_{setting}" in done.stderr
    assert S[:12] not in done.stdout + done.stderr


def test_store_and_ledger_that_are_away_are_told_without_their_passwords(tmp_path: Path) -> None:
    env = ENV | {
        "RUSHGATE_STORE_URL": f"redis://user:{S}@127.0.0.1:1/0",
        "RUSHGATE_LEDGER_DSN": f"postgresql://user:{S}@127.0.0.1:1/x",
        "RUSHGATE_PORT": "0",
    }
    parts = [Part(tmp_path / name, words, env) for name, words in (
        ("gateway", ["gateway"]), ("ledger", ["worker", "ledger"]),
    )]  # fmt: skip
    try:
        assert parts[0].gateway().get("/readyz").status == 503
        until(lambda: "waits for the ledger" in parts[1].text)
        said = parts[0].gateway().get("/readyz").body.decode()
    finally:
        for part in parts:
            part.end()
    doctor = command("doctor", env=env)
    texts = {"gateway": parts[0].text, "ledger": parts[1].text, "readyz": said, "doctor": doctor.stdout + doctor.stderr}
    assert leaks(SECRETS | {"password": S}, texts) == []
