"""Who gets in, and what another page cannot do: wrong tokens, sessions that are over, forged actions, headers."""

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import WIDE, Site, log_in
from tests.e2e.support import ADMIN, KEYS, Part, Reply, exchange, until

JSON = {"content-type": "application/json"}


def console_process(site: Site, log: Path, **env: str) -> tuple[Part, str]:
    """A console process beside the stack's, with settings of its own; its URL."""
    values = {
        **KEYS, "RUSHGATE_STORE_URL": site.up.ready["store"], "RUSHGATE_LEDGER_DSN": site.up.ready["ledger"],
        "RUSHGATE_CONSOLE_PORT": "0", **env,
    }  # fmt: skip
    part = Part(log, ["console"], values)
    found = until(lambda: re.search(r'"console serves".*?"port":(\d+)', part.text) or part.process.poll())
    assert isinstance(found, re.Match), part.text
    return part, f"http://127.0.0.1:{found[1]}/console/"


def call(url: str, method: str, path: str, body: object = None, **headers: str) -> Reply:
    """One call of the console's, as any program can make it; `_` in a header's name is `-`."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return exchange(connection, method, path, data, (JSON if data is not None else {}) | named)
    finally:
        connection.close()


@pytest.fixture(scope="module")
def short(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A console whose logins last two seconds."""
    log = tmp_path_factory.mktemp("short") / "log"
    part, url = console_process(site, log, RUSHGATE_CONSOLE_SESSION_S="2")
    try:
        yield url
    finally:
        part.end()


def logged_in(url: str) -> tuple[str, str]:
    """The cookie and the page's token of a new session."""
    reply = call(url, "POST", "/console/api/login", {"token": ADMIN})
    assert reply.status == 200, reply
    return reply.headers["set-cookie"].split(";")[0], str(reply.json["csrf"])


def test_wrong_token_gets_nobody_in_and_is_kept_nowhere(page: Page, site: Site) -> None:
    page.get_by_label("Admin token").fill("wrong-token-0000000")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("That is not the admin token")
    expect(page.get_by_role("navigation")).to_be_hidden()
    expect(page.get_by_role("button", name="Log out")).to_be_hidden()
    log_in(page)
    assert ADMIN not in page.url
    assert ADMIN not in page.evaluate("JSON.stringify({...localStorage, ...sessionStorage}) + document.cookie")
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/console")
    assert ADMIN not in cookie["value"]
    page.reload()
    expect(page.locator("#state")).to_have_text("live")  # the session goes on
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Admin token")).to_be_focused()
    old = f"{cookie['name']}={cookie['value']}"
    assert call(site.console, "GET", "/console/api/campaigns/x", cookie=old).status == 401  # a copy is worth nothing


def test_session_ends_with_its_time_and_says_so(short: str, chromium: Browser) -> None:
    context = chromium.new_context(viewport=WIDE)  # type: ignore[arg-type]
    try:
        page = context.new_page()
        page.goto(short)
        page.get_by_label("Admin token").fill(ADMIN)
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#nav")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_text("Your session is over: log in again.")
        expect(page.get_by_role("navigation")).to_be_hidden()
    finally:
        context.close()


def test_tokens_are_guessed_slowly(short: str) -> None:
    statuses = [call(short, "POST", "/console/api/login", {"token": f"guess-{n}-000000000"}).status for n in range(12)]
    assert statuses[:10] == [401] * 10
    refused = call(short, "POST", "/console/api/login", {"token": ADMIN})
    assert (statuses[10], refused.status, refused.code) == (429, 429, "rate_limited")  # the right one neither
    assert 1 <= int(refused.headers["retry-after"]) <= 60


ACTIONS = [
    "campaigns/x/open", "campaigns/x/restock", "campaigns/x", "outbox/replay", "dead/replay", "dead/drop",
    "workers/scale", "orders/x/actions/cancel", "orders/x/refunds", "orders/x/refunds/y/approve", "logout",
]  # fmt: skip


@pytest.mark.parametrize("path", ACTIONS)
def test_action_needs_session_origin_and_the_pages_token(site: Site, path: str) -> None:
    cookie, csrf = logged_in(site.console)
    host, where = urlsplit(site.console).netloc, f"/console/api/{path}"

    def told(**headers: str) -> tuple[int, str]:
        reply = call(site.console, "POST", where, {}, **headers)
        return reply.status, reply.code

    assert told(x_rushgate_csrf=csrf) == (401, "unauthorized")
    assert told(cookie=cookie) == (403, "csrf")
    assert told(cookie=cookie, x_rushgate_csrf="0" * 64) == (403, "csrf")
    assert told(cookie=cookie, x_rushgate_csrf=logged_in(site.console)[1]) == (403, "csrf")  # another session's
    assert told(cookie=cookie, x_rushgate_csrf=csrf, origin="http://evil.example") == (403, "other_origin")
    assert told(cookie=cookie, x_rushgate_csrf=csrf, sec_fetch_site="cross-site") == (403, "other_origin")
    status, code = told(cookie=cookie, x_rushgate_csrf=csrf, origin=f"http://{host}", sec_fetch_site="same-origin")
    assert code not in ("csrf", "other_origin", "unauthorized"), status


QUESTIONS = ["campaigns/x", "outbox", "dead", "search?q=x", "orders/x", "workers", "tune", "live", "access"]


@pytest.mark.parametrize("path", QUESTIONS)
def test_question_needs_a_session(site: Site, path: str) -> None:
    cookie, _ = logged_in(site.console)
    name, _, value = cookie.partition("=")
    forged = f"{name}={value[:-2]}{'AA' if value[-2:] != 'AA' else 'BB'}"
    for headers in ({}, {"cookie": forged}, {"authorization": f"Bearer {ADMIN}"}):
        assert call(site.console, "GET", f"/console/api/{path}", **headers).status == 401


def test_answers_carry_the_headers_that_keep_a_page_apart(site: Site) -> None:
    for path in ("/console/", "/console/api/session", "/console/nothing", "/metrics"):
        headers = call(site.console, "GET", path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
        assert headers["referrer-policy"] == "no-referrer"
    page = call(site.console, "GET", "/console/")
    assert b"<script>" not in page.body
    script = re.search(rb'src="([^"]+main.js)"', page.body)
    assert script is not None
    found = call(site.console, "GET", script[1].decode())
    assert (found.status, found.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")


def test_body_of_an_action_is_bounded_and_json(site: Site) -> None:
    cookie, csrf = logged_in(site.console)
    where = "/console/api/campaigns/x/restock"
    large = call(site.console, "POST", where, "x" * 300_000, cookie=cookie, x_rushgate_csrf=csrf)
    assert (large.status, large.code) == (413, "too_large")
    form = call(site.console, "POST", where, {}, cookie=cookie, x_rushgate_csrf=csrf, content_type="text/plain")
    assert form.status in (413, 415, 422)
    assert call(site.console, "POST", "/console/api/login", {"token": "x" * 600}).code == "invalid"


def test_metrics_of_all_processes_at_one_address(site: Site) -> None:
    told = call(site.console, "GET", "/metrics")
    assert told.status == 200
    for kind in ("gateway", "ledger", "relay", "console"):
        assert f'kind="{kind}"'.encode() in told.body
    # Through a proxy on this machine everybody would look like this machine.
    assert call(site.console, "GET", "/metrics", x_forwarded_for="192.0.2.7").status == 401
    headers = {"x_forwarded_for": "192.0.2.7", "authorization": f"Bearer {ADMIN}"}
    assert call(site.console, "GET", "/metrics", **headers).status == 200
    assert call(site.console, "GET", "/livez").status == call(site.console, "GET", "/readyz").status == 200


def test_console_without_an_admin_token_does_not_start(site: Site, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="RUSHGATE_ADMIN_TOKEN must be set"):
        console_process(site, tmp_path / "log", RUSHGATE_ADMIN_TOKEN="")
