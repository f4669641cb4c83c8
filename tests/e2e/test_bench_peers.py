"""The peers of the comparison: their script on a real store, the echo as a process, their locks and files."""

import asyncio
import json
import re
from typing import Any

import pytest

from bench.peers.contestants import NGINX, Answer, ask, echoing
from bench.peers.install import FASTAPI, FASTIFY, FOLDER
from lua.connection import StoreConnection
from tests.support import contents, fresh, tell

SCRIPT = (FOLDER / "order.lua").read_text("utf-8")
ACCEPTED, REPEATED, SOLD_OUT, OVER_LIMIT = range(4)


class Campaign:
    """A campaign of the peers, with these units of `red` and a limit of 2 for a buyer."""

    def __init__(self, store: StoreConnection) -> None:
        self.store = store
        self.base = f"{{{fresh('peer')}}}:"

    async def open(self, **units: int) -> "Campaign":
        for sku, left in units.items():
            await tell(self.store, "HSET", self.base + "stock", sku, left)
        return self

    async def order(self, key: str, buyer: str, *lines: str | int, record: str = "record") -> list[Any]:
        keys = [self.base + name for name in ("stock", "buyers", "requests", "orders")]
        args = [key, record, "id", '{"order":1}', buyer, 2, *(lines or ("red", 1))]
        return list(await tell(self.store, "EVAL", SCRIPT, 4, *keys, *args))

    async def left(self, sku: str) -> int:
        return int(await tell(self.store, "HGET", self.base + "stock", sku))

    async def entries(self) -> int:
        return int(await tell(self.store, "XLEN", self.base + "orders"))


async def test_an_order_takes_units_counts_for_its_buyer_and_is_in_the_stream(store: StoreConnection) -> None:
    campaign = await Campaign(store).open(red=5)
    assert await campaign.order("k1", "ann", "red", 2, record="id1 then") == [ACCEPTED, b"id1 then"]
    assert await campaign.left("red") == 3
    assert int(await tell(store, "HGET", campaign.base + "buyers", "ann")) == 2
    [[_, fields]] = await tell(store, "XRANGE", campaign.base + "orders", "-", "+")
    assert fields == [b"id", b"id", b"order", b'{"order":1}']


async def test_a_repeat_gets_the_first_answer_and_changes_nothing(store: StoreConnection) -> None:
    campaign = await Campaign(store).open(red=5)
    await campaign.order("k1", "ann", record="first")
    before = await contents(store)
    assert await campaign.order("k1", "ann", record="second") == [REPEATED, b"first"]
    assert await contents(store) == before


async def test_a_buyer_gets_two_units_and_a_refusal_writes_nothing(store: StoreConnection) -> None:
    campaign = await Campaign(store).open(red=5)
    await campaign.order("k1", "ann")
    await campaign.order("k2", "ann")
    before = await contents(store)
    assert await campaign.order("k3", "ann") == [OVER_LIMIT, b""]
    assert await contents(store) == before
    assert (await campaign.order("k4", "bob"))[0] == ACCEPTED


async def test_the_last_unit_is_sold_once(store: StoreConnection) -> None:
    campaign = await Campaign(store).open(red=1)
    got = await asyncio.gather(*(campaign.order(f"k{n}", f"b{n}") for n in range(10)))
    assert sorted(code for code, _ in got) == [ACCEPTED] + [SOLD_OUT] * 9
    assert await campaign.left("red") == 0
    assert await campaign.entries() == 1


async def test_two_lines_of_one_sku_are_one_wish(store: StoreConnection) -> None:
    campaign = await Campaign(store).open(red=1, blue=9)
    before = await contents(store)
    assert await campaign.order("k1", "ann", "red", 1, "red", 1) == [SOLD_OUT, b"red"]
    assert await campaign.order("k2", "ann", "blue", 1, "green", 1) == [SOLD_OUT, b"green"]
    assert await contents(store) == before


async def test_the_echo_reads_an_order_and_answers_what_it_was_given() -> None:
    answer = Answer(409, "application/problem+json", '{"code":"sold_out"}')
    async with echoing(0, answer) as (_, port):
        assert await ask(port, "any", "key", json.dumps({"buyer_id": "b" * 200_000})) == answer
        assert await ask(port, "any", "key", "{}") == answer


async def test_an_echo_that_cannot_start_is_an_error_and_not_a_contestant() -> None:
    with pytest.raises(RuntimeError, match="before it was ready"):
        async with echoing(0, Answer(202, "application/json", "{}")._replace(status="none")):  # type: ignore[arg-type]
            pass


def test_every_package_of_the_peers_is_pinned_by_its_hash_and_names_no_host() -> None:
    python = (FASTAPI / "requirements.lock").read_text("utf-8")
    pinned = re.findall(r"^([a-z0-9-]+)==\S+ \\\n    --hash=sha256:", python, re.MULTILINE)
    wanted = (FASTAPI / "requirements.in").read_text("utf-8").split()
    assert {name.partition("[")[0] for name in wanted} <= set(pinned)
    assert len(pinned) == python.count("==")
    assert "://" not in python
    node = json.loads((FASTIFY / "package-lock.json").read_text("utf-8"))["packages"]
    for name, package in node.items():
        assert not name or package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
    assert {"node_modules/fastify", "node_modules/ioredis"} <= set(node)


def test_all_peers_with_a_store_share_one_script_and_nginx_stays_in_its_folder() -> None:
    for file in (FASTAPI / "app.py", FASTIFY / "server.mjs", NGINX / "nginx.conf"):
        assert "order.lua" in file.read_text("utf-8"), file
    conf = (NGINX / "nginx.conf").read_text("utf-8")
    assert set(re.findall(r"@(\w+)@", conf)) == {"FOLDER", "MODULES", "PORT"}
    assert "/etc/" not in conf
    assert "listen 127.0.0.1:" in conf
