"""One `rushgate up` a session, and two gateway processes of known address on its store and ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.support import KEYS, Client, Part, Up


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
def pair(stack: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Client]]:
    """Two gateway processes, each with its own port, on the stack's store and ledger."""
    logs: Path = tmp_path_factory.mktemp("pair")
    env = {
        **KEYS,
        "RUSHGATE_STORE_URL": stack.ready["store"],
        "RUSHGATE_LEDGER_DSN": stack.ready["ledger"],
        "RUSHGATE_PORT": "0",
    }
    parts = [Part(logs / f"{n}.log", ["gateway"], env) for n in range(2)]
    try:
        yield parts[0].gateway(), parts[1].gateway()
    finally:
        for part in parts:
            part.end()
