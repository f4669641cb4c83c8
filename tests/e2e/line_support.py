"""Waiting rooms over HTTP: joining, asking, solving, as a channel's server or a buyer's browser does it."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.e2e.support import APP_KEY, Client, Reply, bearer, until


def room_sale(client: Client, stock: Mapping[str, int] | None = None, **fields: Any) -> str:
    """An open campaign with a waiting room that admits 1,000 a second, unless `fields` say otherwise."""
    return client.sale(stock or {"red": 1_000}, **{"admission": "room", "room": {"rate": 1_000}, **fields})


def opening_in(seconds: float) -> dict[str, Any]:
    """Fields of a campaign whose window begins so late."""
    return {"opens_at": (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()}


def post(client: Client, campaign: str, end: str, body: Mapping[str, Any], key: str = "", **headers: str) -> Reply:
    data = json.dumps(body).encode()
    return client.call("POST", f"/v1/campaigns/{campaign}{end}", data, (bearer(key) if key else {}) | headers)


def join(client: Client, campaign: str, buyer: str, key: str = APP_KEY, **fields: Any) -> dict[str, Any]:
    """What the channel's server is told of its buyer's place."""
    reply = post(client, campaign, "/line", {"buyer_id": buyer, **fields}, key)
    assert reply.status == 200, reply
    return dict(reply.json)


def ask(client: Client, campaign: str, line: str, wait_s: float = 0) -> dict[str, Any]:
    """How the signed place stands."""
    reply = client.get(f"/v1/campaigns/{campaign}/line?wait={wait_s}", line)
    assert reply.status == 200, reply
    return dict(reply.json)


def until_state(client: Client, campaign: str, line: str, state: str) -> dict[str, Any]:
    """The answer once the place stands so."""

    def look() -> dict[str, Any] | None:
        view = ask(client, campaign, line)
        if view["state"] != state:
            view = ask(client, campaign, line, 1)
        return view if view["state"] == state else None

    found: dict[str, Any] = until(look)
    return found


def solve(challenge: str, bits: int) -> str:
    """A text that makes the digest begin with so many zeros: what a guest's browser looks for."""
    for n in itertools.count():
        digest = hashlib.sha256(f"{challenge}.{n}".encode()).digest()
        if int.from_bytes(digest, "big") >> (256 - bits) == 0:
            return str(n)
    raise AssertionError("unreachable")


def set_rate(client: Client, campaign: str, **body: Any) -> dict[str, Any]:
    reply = client.admin("PUT", f"{campaign}/room", body)
    assert reply.status == 200, reply
    return dict(reply.json)


def room(client: Client, campaign: str) -> dict[str, Any]:
    reply = client.admin("GET", f"{campaign}/room")
    assert reply.status == 200, reply
    return dict(reply.json)
