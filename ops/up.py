"""`rushgate up`: the stack in the foreground, until Ctrl-C, SIGTERM or the end of its terminal."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator

from core.settings import Settings
from ops.campaign_commands import remedy
from ops.doctor import NO_ADMIN
from ops.stack import running


@contextlib.contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """An event that SIGINT, SIGTERM or SIGHUP sets, instead of breaking in anywhere.

    SIGHUP is what a terminal that is closed sends: unhandled it would leave store and ledger running. `nohup` has it
    ignored, and so it stays.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def first_of(*tasks: "asyncio.Task[object]") -> None:
    """One of the tasks is done, the others are gone. Raises what it raised."""
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


async def up(settings: Settings, *, play: bool = False) -> int:
    """Exit status 0 after a signal. Prints one line of JSON on stdout when orders are taken.

    `play`: play the partners too; without it an order waits until somebody pays it.
    """
    with stop_signal() as stopping:
        stop = asyncio.create_task(stopping.wait())
        serving = asyncio.create_task(_serve(settings, play))
        await first_of(stop, serving)
    return 0


async def _serve(settings: Settings, play: bool) -> None:
    async with running(settings, play=play) as stack:
        warnings = _missing_keys(stack.settings)
        if play and not stack.played:
            warnings.append("no partners are played: RUSHGATE_PARTNERS_URL names others")
        warnings += [f"campaign {n} is out of service: {remedy(n, stack.settings)}" for n in stack.missing]
        for words in warnings:
            print(f"rushgate: warning: {words}", file=sys.stderr, flush=True)
        print(stack.ready_line(), flush=True)
        await stack.supervisor.wait()


def _missing_keys(settings: Settings) -> list[str]:
    """What cannot be called for want of a secret, as sentences."""
    found = [] if settings.admin_token else [NO_ADMIN]
    if not settings.channel_keys:
        found.append("RUSHGATE_CHANNEL_KEYS is empty: only channels of `rushgate channel add` can send orders")
    return found
