"""`rushgate workers`: who lives, what it works on, and who is missing. `rushgate scale`: more of them, or fewer."""

import argparse
import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from core.errors import Invalid, StoreUnavailable
from core.settings import Settings
from lua.connection import StoreConnection
from lua.registry import EVERY_S, Sign, read_signs
from ops.campaign_commands import add_data_dir
from ops.control import MOST, Child, NotScaled, Request, call, wrong_with
from ops.desk import Place, command_place
from ops.order_display import many, plain

PARTS = ("workers", "scale")
KINDS = ("gateway", "ledger", "expiry", "relay", "reconcile")
# What does not happen while none of a kind lives.
MISSED = {
    "gateway": "no order is taken",
    "ledger": "accepted orders wait in the store",
    "expiry": "orders that nobody pays keep their units",
    "relay": "no message reaches the partners, and no unit comes back on sale",
    "reconcile": "nothing is audited or mended, and a store that was started anew stays shut",
}
WIDE = 120  # columns from which what a process works on has a column of its own
WAIT_S = 15.0  # longest wait for the first sign of processes that were started
TIMEOUT_S = 2.0


class Found(msgspec.Struct):
    """What `workers --json` prints: the living, and what is missing in plain words."""

    processes: list[Sign]
    missing: list[str]
    warnings: list[str]
    now_ms: int


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of both commands."""
    part = parts.add_parser("workers", help="each living process: what it reads, its rate, its lag; who is missing")
    part.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    part.add_argument("--json", action="store_true", help="print JSON")
    add_data_dir(part)
    part = parts.add_parser("scale", help="run more or fewer processes of the stack that `rushgate up` runs here")
    words = f"how many of a kind shall run, e.g. ledger=3 relay=2; at most {MOST}"
    part.add_argument("kinds", nargs="+", metavar="KIND=N", help=words)
    add_data_dir(part)


@contextlib.asynccontextmanager
async def watched(settings: Settings) -> AsyncIterator[StoreConnection]:
    """A connection for reading signs of life: also of a store that is not set as promised, or not admitted."""
    store = StoreConnection(settings.store_url, "memory", TIMEOUT_S, "workers")
    try:
        yield store
    finally:
        await store.close()


async def look(store: StoreConnection, place: Place) -> Found:
    """Who lives now. Raises StoreUnavailable."""
    signs, now_ms = await read_signs(store.exchange)
    return Found(signs, missing(signs, place), warnings(signs), now_ms)


def missing(signs: Sequence[Sign], place: Place) -> list[str]:
    """The kinds that must live and do not, each with what follows from it and what to do."""
    alive = {sign.kind for sign in signs}
    found = []
    for kind in KINDS:
        if kind in alive or (kind == "reconcile" and place.settings.reconcile_workers == 0):
            continue
        start = f"rushgate gateway` or `rushgate scale {kind}=1" if kind == "gateway" else f"rushgate worker {kind}"
        if place.folder is not None and kind != "gateway":
            start = f"rushgate scale {kind}=1"
        name = "gateway" if kind == "gateway" else f"{kind} worker"
        found.append(f"no {name} lives: {MISSED[kind]}. Start one: `{start}`")
    return found


def warnings(signs: Sequence[Sign]) -> list[str]:
    """What is odd about those that live."""
    versions = sorted({sign.version for sign in signs if sign.version})
    found = []
    if len(versions) > 1:
        found.append(f"several versions are at work: {', '.join(versions)}")
    for sign in signs:
        if why := sign.more.get("refuses"):
            found.append(f"gateway {sign.pid} on {sign.host} refuses orders: {why}")
        partners = sign.more.get("open_breakers", [])
        found += [f"relay {sign.pid} on {sign.host} holds back from partner {name}, which fails" for name in partners]
    return found


async def run(place: Place, args: argparse.Namespace) -> int:
    """Exit status 0; 1 if a kind that must live does not. Raises Fault."""
    console = Console()
    async with watched(place.settings) as store:
        found = await look(store, place)
        if args.watch and not args.json and console.is_terminal:
            with Live(_view(found, console.width), console=console, auto_refresh=False) as live:
                while True:
                    await asyncio.sleep(EVERY_S)
                    with contextlib.suppress(StoreUnavailable):  # the last picture stays; its ages tell
                        found = await look(store, place)
                    live.update(_view(found, console.width), refresh=True)
        while True:
            if args.json:
                print(msgspec.json.encode(found).decode(), flush=True)
            elif console.is_terminal:
                console.print(_view(found, console.width))
            else:
                print("\n".join(lines(found)), flush=True)
            if not args.watch:
                return 1 if found.missing else 0
            await asyncio.sleep(EVERY_S)
            found = await look(store, place)


async def scale(settings: Settings, args: argparse.Namespace) -> int:
    """Exit status 0 when as many as asked for have given a sign of life. Raises Fault."""
    wanted: dict[str, int] = {}
    for text in args.kinds:
        kind, _, number = text.partition("=")
        if not number.isdecimal():
            raise Invalid("expected KIND=N, e.g. ledger=3", text if text.startswith("--") else "KIND=N")
        wanted[kind] = int(number)
    if why := wrong_with(wanted):
        raise Invalid(why, "KIND=N")
    folder = Path(settings.data_dir)
    before = await call(folder, Request("children"))
    after = await call(folder, Request("scale", wanted), settings.grace_s)
    async with watched(command_place(os.environ, args.data_dir).settings) as store:
        for kind, n in wanted.items():
            alive = pids(after, kind)
            await at_work(store, kind, alive)
            if len(alive) < n:  # the others wait for their next start
                raise NotScaled(f"{kind}: {len(alive)} of {n} are at work, others die again and again: see their logs")
            print(f"{kind}: {len(pids(before, kind))} -> {n}, {'all at work' if n else 'all ended'}")
    return 0


def pids(children: Iterable[Child], kind: str) -> list[int]:
    """Of the living children of a kind."""
    return [child.pid for child in children if child.kind == kind and child.pid is not None]


async def at_work(store: StoreConnection, kind: str, pids: Iterable[int]) -> list[Sign]:
    """The signs of these processes, as soon as all have given one.

    Raises: NotScaled after WAIT_S; StoreUnavailable.
    """
    wanted = set(pids)
    until_s = asyncio.get_running_loop().time() + WAIT_S
    while True:
        signs, _ = await read_signs(store.exchange)
        found = [sign for sign in signs if sign.kind == kind and sign.pid in wanted]
        if {sign.pid for sign in found} == wanted:
            return found
        if asyncio.get_running_loop().time() > until_s:
            raise NotScaled(f"not all {kind} processes came to work within {WAIT_S:g} s: see their logs")
        await asyncio.sleep(EVERY_S / 4)


def _cells(sign: Sign, now_ms: int) -> tuple[str, ...]:
    since = f", {sign.lag_s:,.1f} s" if sign.lag_s >= 0.05 else ""
    waits = f"{sign.lag_orders:,}{since}" if sign.lag_orders else "-"
    rate = f"{sign.rate:,.0f}/s" if sign.rate >= 0.5 else "-"
    age_s = max(0, now_ms - sign.seen_at) / 1000
    return (
        plain(sign.kind).plain,
        plain(sign.host).plain,
        str(sign.pid),
        rate,
        waits,
        f"{sign.busy:.0%}",
        f"{age_s:.1f} s",
    )


HEADS = ("kind", "host", "pid", "rate", "waits", "busy", "seen")


def lines(found: Found) -> list[str]:
    """For a file or a pipe: one line each, nothing cut."""
    rows = [(*_cells(s, found.now_ms), plain(s.version).plain, plain(s.reads).plain) for s in found.processes]
    heads = (*HEADS, "version", "reads")
    widths = [max(len(row[n]) for row in (heads, *rows)) for n in range(len(heads))]
    told = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (heads, *rows)]  # fmt: skip
    return (told if rows else ["no process lives"]) + _notes(found)


def _notes(found: Found) -> list[str]:
    hosts: dict[str, tuple[int, float]] = {}
    for sign in found.processes:
        hosts[sign.host] = sign.more.get("cores", 0), sign.more.get("machine_busy", 0.0)
    told = [f"{host}: {many(cores, 'core')}, {busy:.0%} busy" for host, (cores, busy) in sorted(hosts.items()) if cores]
    return told + [f"warning: {words}" for words in found.warnings] + [f"missing: {words}" for words in found.missing]


def _view(found: Found, width: int) -> Group:
    """For a terminal of 80 columns and more."""
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for n, head in enumerate(HEADS):
        table.add_column(head, no_wrap=True, overflow="ellipsis", justify="right" if n >= 2 else "left",
                         max_width=None if wide or n != 1 else 16)  # fmt: skip
    if wide:
        table.add_column("version", no_wrap=True)
        table.add_column("reads", overflow="fold")
    for sign in found.processes:
        cells = _cells(sign, found.now_ms)
        table.add_row(*map(plain, (*cells, sign.version, sign.reads) if wide else cells))
    parts: list[Table | Text] = [table] if found.processes else [Text("no process lives")]
    if not wide:
        reads = {(sign.kind, sign.reads): sign.version for sign in found.processes}
        parts += [Text(f"{kind} reads {what}; version {of or '?'}", style="dim") for (kind, what), of in reads.items()]
    for words in _notes(found):
        loud = words.startswith(("missing", "warning"))
        parts.append(Text(words, style="bold red" if words.startswith("missing") else "yellow" if loud else "dim"))
    return Group(*parts)
