"""One `rushgate up` a session, and two gateway processes of known address on its store and ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.support import KEYS, Client, Part, Up


def own_gateway(stack: Up) -> dict[str, str]:
    """The settings of a gateway process beside the stack's, on a free port."""
    return {
        **KEYS,
        "RUSHGATE_STORE_URL": stack.ready["store"],
        "RUSHGATE_LEDGER_DSN": stack.ready["ledger"],
        "RUSHGATE_PORT": "0",
    }


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack with two gateway processes and the channels `app` and `web`."""
    data: Path = tmp_path_factory.mktemp("stack")
    up = Up(data / "d", "--port", "0", "--gateway-workers", "2")
    try:
        yield up.wait_ready()
    finally:
        up.end()


@pytest.fixture(scope="session")
def client(stack: Up) -> Client:
    return stack.client


@pytest.fixture(scope="session")
def long_client(stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A gateway process on the stack's store and ledger, every order of which goes uvicorn's way."""
    part = Part(
        tmp_path_factory.mktemp("long") / "log", ["gateway"], own_gateway(stack) | {"RUSHGATE_SHORT_WAY": "off"}
    )
    try:
        yield part.gateway()
    finally:
        part.end()


@pytest.fixture(scope="module", params=["short way", "long way"])
def both_ways(request: pytest.FixtureRequest, stack: Up, long_client: Client) -> Client:
    """Each of two gateways, for what must be answered alike on both ways."""
    return stack.client if request.param == "short way" else long_client


@pytest.fixture(scope="session")
def pair(stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Client]]:
    """Two gateway processes, each with its own port, on the stack's store and ledger."""
    logs: Path = tmp_path_factory.mktemp("pair")
    parts = [Part(logs / f"{n}.log", ["gateway"], own_gateway(stack)) for n in range(2)]
    try:
        yield parts[0].gateway(), parts[1].gateway()
    finally:
        for part in parts:
            part.end()
