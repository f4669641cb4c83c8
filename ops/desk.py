"""The desk of an operator's command: connections for its duration, and where a running stack is to be found."""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.errors import ConfigInvalid, LedgerUnavailable, StoreUnavailable
from core.ledger.pool import Pool, close_pool, open_pool
from core.settings import Settings
from lua.connection import SharedConnection
from lua.durability import Level
from ops.embedded import is_owned

STACK_FILE = "stack.json"  # in the data directory, 0600: how to reach the stack that runs there


class Desk(NamedTuple):
    """What a command works with."""

    campaigns: CampaignDesk
    auditor: Auditor
    store: SharedConnection
    ledger: Pool


class Place(NamedTuple):
    """Where a command works: its settings, and the stack of the data directory if they are of it."""

    settings: Settings
    folder: Path | None = None  # None: the settings name store and ledger themselves
    gateway: str = ""  # URL, of the stack's

    @property
    def is_dead(self) -> bool:
        """The settings are of a stack whose `rushgate up` ended without a farewell."""
        return self.folder is not None and not is_owned(self.folder)

    def obituary(self) -> str:
        """What to say of a dead stack."""
        return f"the stack in {self.folder} has died: start `rushgate up`"

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """A service that is away because its stack is dead is told so. Raises ConfigInvalid."""
        try:
            yield
        except (ConfigInvalid, StoreUnavailable, LedgerUnavailable) as exc:
            if self.is_dead:
                raise ConfigInvalid(self.obituary()) from exc
            raise


def command_place(environ: Mapping[str, str], data_dir: str | None = None) -> Place:
    """The settings of a command: what environment and TOML file name, the rest from the stack in the data directory.

    Settings that name store and ledger need no stack. `data_dir` wins over both.

    Raises: ConfigInvalid.
    """
    given = Settings.given(environ) | ({"data_dir": data_dir} if data_dir else {})
    named = {name for name in ("store_url", "ledger_dsn") if given.get(name)}
    settings = Settings().with_values(**given)
    if len(named) == 2:
        return Place(settings)
    folder = Path(settings.data_dir)
    try:
        stack = json.loads((folder / STACK_FILE).read_text("utf-8"))
    except FileNotFoundError:
        stack = None
    except (OSError, ValueError) as exc:
        raise ConfigInvalid(f"{folder / STACK_FILE} cannot be read: {exc}") from exc
    known: dict[str, Any] = stack["settings"] if stack else {}
    if any(known.get(name) != given[name] for name in named):
        raise ConfigInvalid("set both RUSHGATE_STORE_URL and RUSHGATE_LEDGER_DSN, or neither")
    if not stack:
        raise ConfigInvalid(
            f"no stack runs in {folder}: there is no {STACK_FILE} in that folder. Start one with `rushgate up`, name "
            "another folder (RUSHGATE_DATA_DIR or --data-dir), or set RUSHGATE_STORE_URL and RUSHGATE_LEDGER_DSN"
        )
    if given.get("shards", known["shards"]) != known["shards"]:
        raise ConfigInvalid(f"RUSHGATE_SHARDS: the stack in {folder} has {known['shards']}, fixed for its life")
    empty = {"store_url", "ledger_dsn"} - named
    mine = {name: value for name, value in given.items() if name not in empty}
    return Place(Settings().with_values(**known | mine), folder, stack["gateway"])


@contextlib.asynccontextmanager
async def open_desk(settings: Settings) -> AsyncIterator[Desk]:
    """A desk; its connections are closed afterwards."""
    name = f"command-{os.getpid()}"
    store = SharedConnection(settings.store_url, Level.of(settings), settings.store_timeout_s, name)
    ledger = await open_pool(settings.ledger_dsn, f"rushgate-{name}", settings.ledger_timeout_s, size=2)
    campaigns = CampaignDesk(store, ledger, settings.shards, settings.sold_out_lease_ms)
    try:
        yield Desk(campaigns, Auditor(campaigns, store, ledger, settings.shards), store, ledger)
    finally:
        await store.close()
        await close_pool(ledger)


async def connect_ledger(settings: Settings) -> asyncpg.Connection:
    """One connection to the ledger. Raises ConfigInvalid if it cannot be had."""
    try:
        return await asyncpg.connect(settings.ledger_dsn, timeout=settings.ledger_timeout_s)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise ConfigInvalid(f"RUSHGATE_LEDGER_DSN: the ledger cannot be reached: {exc}") from exc
