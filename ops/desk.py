"""The desk of an operator's command: connections for its duration, and where a running stack is to be found."""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import NamedTuple

import asyncpg

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.errors import ConfigInvalid
from core.ledger.pool import Pool, open_pool
from core.settings import Settings
from lua.connection import SharedConnection

STACK_FILE = "stack.json"  # in the data directory, 0600: how to reach the stack that runs there


class Desk(NamedTuple):
    """What a command works with."""

    campaigns: CampaignDesk
    auditor: Auditor
    store: SharedConnection
    ledger: Pool


def command_settings(environ: Mapping[str, str]) -> Settings:
    """The settings of a command; where they name no store and ledger, those of the stack in the data directory.

    Raises: ConfigInvalid.
    """
    settings = Settings.from_env(environ)
    stack = Path(settings.data_dir) / STACK_FILE
    if settings.store_url and settings.ledger_dsn:
        return settings
    if not stack.exists():
        raise ConfigInvalid(
            f"no stack runs in {settings.data_dir} (`rushgate up` starts one there), and RUSHGATE_STORE_URL and "
            "RUSHGATE_LEDGER_DSN name none elsewhere"
        )
    return settings.with_values(**json.loads(stack.read_text("utf-8"))["settings"])


@contextlib.asynccontextmanager
async def open_desk(settings: Settings) -> AsyncIterator[Desk]:
    """A desk; its connections are closed afterwards."""
    name = f"command-{os.getpid()}"
    store = SharedConnection(settings.store_url, settings.durability, settings.store_timeout_s, name)
    ledger = await open_pool(settings.ledger_dsn, f"rushgate-{name}", settings.ledger_timeout_s, size=2)
    campaigns = CampaignDesk(store, ledger, settings.shards, settings.sold_out_lease_ms)
    try:
        yield Desk(campaigns, Auditor(campaigns, store, ledger, settings.shards), store, ledger)
    finally:
        await store.close()
        ledger.terminate()


async def connect_ledger(settings: Settings) -> asyncpg.Connection:
    """One connection to the ledger. Raises ConfigInvalid if it cannot be had."""
    try:
        return await asyncpg.connect(settings.ledger_dsn, timeout=settings.ledger_timeout_s)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise ConfigInvalid(f"RUSHGATE_LEDGER_DSN: the ledger cannot be reached: {exc}") from exc
