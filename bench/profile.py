"""`python -m bench.profile NAME`: flame graphs of the gateway (py-spy) and the store (perf) during a rush.

Keeps bench/results/flame-gateway-NAME.svg and flame-store-NAME.svg; NAME says what is shown, e.g. `before`.
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench.environment import environment
from bench.flame import folded, from_perf, keep
from bench.generator import closed, order_wire
from bench.processes import all_cores, gateway, pids, pin_family
from bench.services import Services, services

SECONDS = 8.0
CONNECTIONS = 128
PER_S, STORE_PER_S = 499, 1_999  # samples; no divisors of anything that happens regularly
CHUNK = 10_000  # orders of one load


async def profile(found: Services, name: str, seconds: float, connections: int, native: bool) -> None:
    """Both flame graphs are kept, or it is said why one is not."""
    store_pid, ledger_pid = pids(found)
    pin_family(store_pid, [0])
    pin_family(ledger_pid, [1])
    os.sched_setaffinity(0, [1])
    facts = environment()
    campaign = f"profile-{time.time_ns():x}"
    await found.open_sale(campaign)
    async with gateway(found, [0]) as running:
        with (
            tempfile.TemporaryDirectory(prefix="rushgate-profile-") as folder,
            load(running.port, campaign, connections),
        ):
            words = f", {connections} connections, gateway and store on one core, commit {facts['commit']}"
            raw = Path(folder) / "gateway.txt"
            await _run(
                _py_spy(), "record", "--pid", str(running.pid), "--format", "raw", "--function", "--output", str(raw),
                "--rate", str(PER_S), "--duration", f"{seconds:.0f}", *(["--native"] if native else []),
            )  # fmt: skip
            stacks = folded(raw.read_text("utf-8"))
            print(f"kept in {keep(f'flame-gateway-{name}', stacks, f'The gateway in a rush: {name}', words)}")
            stacks = await _perf(store_pid, seconds, Path(folder))
            print(f"kept in {keep(f'flame-store-{name}', stacks, f'The store in a rush: {name}', words)}")


@contextmanager
def load(port: int, campaign: str, connections: int) -> Iterator[None]:
    """A closed loop of new orders on so many connections, from a thread, until the end of the block; warm at its start.

    Raises: RuntimeError at the end, if an order was not accepted.
    """
    wire, over, wrong = order_wire(campaign, "9a0f17e5"), threading.Event(), Counter[str]()
    warm = threading.Event()

    def run() -> None:
        first = 0
        try:
            while not over.is_set():
                done = closed(port, [wire(n) for n in range(first, first + CHUNK)], connections)
                wrong.update(answer[9:12].decode() for answer in done.answers if answer[9:12] != b"202")
                first += CHUNK
                warm.set()
        except Exception as exc:
            wrong[f"{type(exc).__name__}: {exc}"] += 1
            warm.set()

    thread = threading.Thread(target=run, name="load")
    thread.start()
    warm.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if wrong:
        raise RuntimeError(f"not every order was accepted: {dict(wrong)}")


async def _perf(pid: int, seconds: float, folder: Path) -> Counter[tuple[str, ...]]:
    data = folder / "store.perf"
    if shutil.which("perf") is None:
        raise SystemExit("perf is missing (Debian: linux-perf)")
    # The wheel's server has no frame pointers: the stacks come from its unwind tables.
    record = [
        "perf",
        "record",
        "-q",
        "-F",
        str(STORE_PER_S),
        "--call-graph",
        "dwarf,16384",
        "-p",
        str(pid),
        "-o",
        str(data),
    ]
    await _run(*record, "--", "sleep", f"{seconds:.0f}")
    return from_perf(await _run("perf", "script", "-i", str(data), "-F", "comm,ip,sym", "--no-inline"))


def _py_spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise SystemExit("py-spy is missing (pip install py-spy)")
    return found


async def _run(*command: str) -> str:
    """What it printed. Raises SystemExit if it failed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complained = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{Path(command[0]).name} failed: {complained.decode(errors='replace')[-1_000:]}")
    return said.decode("utf-8", "replace")


async def _main(name: str, seconds: float, connections: int, native: bool) -> None:
    async with services() as found:
        try:
            await profile(found, name, seconds, connections, native)
        finally:
            os.sched_setaffinity(0, all_cores())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("name", help="of the files, e.g. before, after")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each profile (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="(default: %(default)s)")
    parser.add_argument("--python", action="store_true", help="only Python frames of the gateway")
    args = parser.parse_args()
    if not re.fullmatch(r"[a-z0-9-]+", args.name):
        parser.error("a name is small letters, digits and dashes")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(args.name, args.seconds, args.connections, not args.python))
    return 0


if __name__ == "__main__":
    sys.exit(main())
