"""A process from which children are forked that rebuild a campaign and die by SIGKILL behind their n-th step.

A step is a statement of the ledger, BEGIN and COMMIT among them, or an exchange with the store. Called with the
settings of the store and the ledger in its environment and the campaign's name; reads `<name> <steps>` lines, and
answers each with the child's exit status: negative = killed.
"""

import asyncio
import os
import signal
import sys

import asyncpg

import core.desk.rebuild
from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.rebuild import Rebuilder
from core.errors import Refused
from core.settings import Settings
from lua.connection import SharedConnection

REFUSED = 3
# Nobody here was told of anything: a hundred rebuilds need not wait.
core.desk.rebuild.HEARD_S = 0.0  # type: ignore[attr-defined]


class Steps:
    """Dies behind the last one."""

    def __init__(self, left: int) -> None:
        self._left = left

    def took(self, *_: object) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Counted(SharedConnection):
    steps: Steps

    async def exchange(self, commands):  # type: ignore[no-untyped-def]
        replies = await super().exchange(commands)
        self.steps.took()
        return replies


async def rebuild(settings: Settings, campaign: str, who: str, steps: int) -> int:
    counted = Steps(steps)
    store = Counted(settings.store_url, "fsync", 5.0, who)
    store.steps = counted

    async def watched(connection: asyncpg.Connection) -> None:
        connection.add_query_logger(counted.took)

    async with asyncpg.create_pool(settings.ledger_dsn, min_size=0, max_size=2, init=watched) as ledger:
        desk = CampaignDesk(store, ledger, settings.shards, settings.sold_out_lease_ms)
        auditor = Auditor(desk, store, ledger, settings.shards)
        try:
            await Rebuilder(desk, auditor, store, ledger, who).rebuild(campaign, "test")
        except Refused as exc:
            print(exc, file=sys.stderr)
            return REFUSED
        finally:
            await store.close()
    return 0


def main() -> None:
    settings, campaign = Settings.from_env(os.environ), sys.argv[1]
    for line in sys.stdin:
        who, steps = line.split()
        child = os.fork()
        if not child:
            os._exit(asyncio.run(rebuild(settings, campaign, who, int(steps))))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
