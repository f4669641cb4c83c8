"""Fixtures of the fault tests."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.ledger.pool import Pool
from core.settings import Settings
from tests.faults.site import Site, site_of
from tests.faults.support import Process, Spawn


@pytest.fixture
async def spawn(tmp_path: Path) -> AsyncIterator[Spawn]:
    """Starts workers; what is left of them at the end is killed."""
    children: list[Process] = []

    async def one(kind: str, settings: Settings) -> Process:
        with (tmp_path / f"{kind}-{len(children)}.log").open("wb") as log:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ops.cli", "worker", kind,
                # No metrics: their own looks at the ledger would wait for the locks that a test takes.
                env={"PATH": os.environ["PATH"], **settings.to_env(), "RUSHGATE_METRICS_LISTEN": ""},
                stdout=log, stderr=log,
            )  # fmt: skip
        children.append(child)
        return child

    yield one
    for child in children:
        if child.returncode is None:
            child.kill()
            await child.wait()


@pytest.fixture
async def site(request: pytest.FixtureRequest, settings: Settings, ledger: Pool) -> AsyncIterator[Site]:
    """On one shard, or on as many as the test's parameter says."""
    async with site_of(settings, ledger, getattr(request, "param", 1)) as found:
        yield found
