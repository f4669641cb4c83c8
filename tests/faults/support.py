"""Worker processes of the fault tests."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

from core.settings import Settings

Process = asyncio.subprocess.Process
Spawn = Callable[[str, Settings], Awaitable[Process]]  # the kind of worker, its settings


async def die(child: Process) -> None:
    """By SIGKILL."""
    child.kill()
    assert await child.wait() == -signal.SIGKILL


async def stop(child: Process) -> None:
    """Gracefully."""
    child.terminate()
    assert await child.wait() == 0
