"""`rushgate scale` and a child that dies again and again."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from core.settings import Settings
from ops.control import NotScaled, Request, call, serving
from ops.processes import Supervisor
from ops.workers_command import scale
from tests.conftest import Services
from tests.support import eventually

DIES = [sys.executable, "-I", "-S", "-c", "raise SystemExit(1)"]


async def test_child_that_waits_for_its_next_start_is_not_called_at_work(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUSHGATE_STORE_URL", services.store_url)
    monkeypatch.setenv("RUSHGATE_LEDGER_DSN", services.ledger_dsn)
    settings = Settings(store_url=services.store_url, data_dir=str(tmp_path))

    async def wish(text: str) -> int:
        return await scale(settings, argparse.Namespace(kinds=[text], data_dir=None))

    async def waits() -> bool:
        return [child.state for child in await call(tmp_path, Request("children"))] == ["waiting"]

    async with Supervisor(backoff_s=(1_000.0, 1_000.0)) as supervisor:
        supervisor.know("expiry", DIES, os.environ)
        await supervisor.scale("expiry", 1)
        async with serving(tmp_path, supervisor):
            await eventually(waits)
            with pytest.raises(NotScaled, match="expiry: 0 of 1 are at work, others die again and again"):
                await wish("expiry=1")
            assert await wish("expiry=0") == 0
    assert capsys.readouterr().out == "expiry: 0 -> 0, all ended\n"
