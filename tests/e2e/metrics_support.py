"""A stack whose partners refuse and are away, and its metrics as they are gathered."""

import asyncio
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

from prometheus_client.parser import text_string_to_metric_families as parsed

from lua.connection import StoreConnection
from ops.metrics_gather import gather
from tests.e2e.support import Client, Up, until


class Partner(BaseHTTPRequestHandler):
    """Every partner of the stack: the warehouse refuses, notification is away, the others take what they get."""

    answers: ClassVar[dict[str, int]] = {"warehouse": 422, "notification": 503}

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.answers.get(self.path.split("/")[1], 200))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Scrape:
    """One exposition of a whole deployment."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name for family in parsed(text)}
        self.samples = [sample for family in parsed(text) for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """All samples of this name that have these labels, added."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def values(self, name: str, label: str) -> set[str]:
        """What a label says in the samples of this name."""
        return {s.labels[label] for s in self.samples if s.name == name}


class Watched:
    """A stack of its own, and what it tells."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.client: Client = up.client

    def scrape(self) -> Scrape:
        async def all_of_it() -> bytes:
            store = StoreConnection(self.up.ready["store"], "memory", 5.0, "test-metrics")
            try:
                return await gather(store.exchange)
            finally:
                await store.close()

        return Scrape(asyncio.run(all_of_it()).decode())

    def until(self, true: Callable[[Scrape], Any]) -> Scrape:
        """The first exposition of which this is true."""

        def found() -> Scrape | None:
            now = self.scrape()
            return now if true(now) else None

        return until(found, every_s=0.1)  # type: ignore[no-any-return]

    def exchange(self, *commands: tuple[Any, ...]) -> list[Any]:
        async def done() -> list[Any]:
            store = StoreConnection(self.up.ready["store"], "memory", 5.0, "test-metrics")
            try:
                return await store.exchange(commands)
            finally:
                await store.close()

        return asyncio.run(done())
