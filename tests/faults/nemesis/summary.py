"""Many runs in one table: what was injected and found, by fault and by promise. Only rounds of one state of the code.

A line of runs.jsonl names its commit and a hash of the source folders; rounds on changed code are never mixed in.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from tests.faults.nemesis.faults import FAULTS
from tests.faults.nemesis.promises import promises

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ("core", "gateway", "lua", "workers", "ops", "loadtest", "tests/faults/nemesis")
KINDS = (".py", ".lua", ".sql")


class Round(Struct, frozen=True):
    """A round as it is kept: `faults` are those that were made, without the skipped ones."""

    seed: int
    order_type: str
    faults: dict[str, int]
    skipped: list[str]
    operations: int
    orders: int
    lost: int
    violations: dict[str, int]  # by invariant
    wrong: bool  # of these, or of anything else
    heals_s: dict[str, list[float]]
    refusals_ms: tuple[float, float] = (0.0, 0.0)  # the slowest 429 or 503: calm, and while a fault was felt


class Run(Struct, frozen=True):
    """A line of runs.jsonl; what is older than this form has no `tree` and is passed over."""

    at: str
    tree: str
    environment: dict[str, str]
    rounds: list[Round]


class Row(Struct, frozen=True):
    """A row of a table; of heals None: nobody measured one."""

    name: str
    rounds: int
    injected: int
    operations: int
    violations: int
    heals: int
    heal_s_p50: float | None
    heal_s_max: float | None


class Summary(Struct, frozen=True):
    """Everything that the tables say."""

    commits: list[str]
    trees: list[str]
    first: str
    last: str
    rounds: int
    seeds: str
    injected: int
    skipped: dict[str, int]
    operations: int
    orders: int
    lost: int
    violations: int
    wrong: int
    refusals_ms: tuple[float, float]
    order_types: dict[str, int]
    faults: list[Row]
    promises: list[Row]


def tree() -> str:
    """A hash of the sources as they are now: of the program, the judge and the nemesis."""
    whole = hashlib.blake2b(digest_size=8)
    for folder in SOURCES:
        for path in sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in KINDS):
            whole.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()


def commits_since(commit: str) -> set[str]:
    """This commit and those that came after it, shortened as in the lines. Raises ValueError: it is none of ours."""
    asked = ["git", "rev-list", "--abbrev-commit", "--abbrev=7", f"{commit}^..HEAD"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{commit}: {done.stderr.strip()}")
    return set(done.stdout.split())


def read_runs(files: Sequence[Path]) -> list[Run]:
    """The lines of these files that name the state of their code. Raises OSError, msgspec.DecodeError."""
    lines = (line for file in files for line in file.read_bytes().splitlines() if line.strip())
    return [msgspec.json.decode(line, type=Run) for line in lines if "tree" in json.loads(line)]


def selected(runs: list[Run], now: str, since: set[str] | None) -> list[Run]:
    """Those of the tree `now`; with `since` those of its commits too, if nothing was changed in the clone."""
    return [r for r in runs if r.tree == now or (since is not None and r.environment["commit"][:7] in since
                                                 and not r.environment["commit"].endswith("-dirty"))]  # fmt: skip


def summarise(runs: Sequence[Run]) -> Summary:
    """The sum of all rounds. Raises ValueError if there is none."""
    rounds = [r for run in runs for r in run.rounds]
    if not rounds:
        raise ValueError("no round of this state of the code is on record")
    faults = [_row(name, [r for r in rounds if r.faults.get(name)], (name,)) for name in FAULTS]
    kept = []
    for name, p in promises().items():
        those = [
            r
            for r in rounds
            if (not p.classes or r.faults.keys() & set(p.classes))
            and (not p.order_types or r.order_type in p.order_types)
        ]
        kept.append(_row(name, those, p.classes or tuple(FAULTS), tuple(map(str, p.invariants))))
    seeds = [r.seed for r in rounds]
    skipped: dict[str, int] = {}
    order_types: dict[str, int] = {}
    for r in rounds:
        order_types[r.order_type] = order_types.get(r.order_type, 0) + 1
        for name in r.skipped:
            skipped[name] = skipped.get(name, 0) + 1
    return Summary(
        sorted({run.environment["commit"] for run in runs}), sorted({run.tree for run in runs}),
        min(run.at for run in runs), max(run.at for run in runs), len(rounds), ranges(seeds),
        sum(n for r in rounds for n in r.faults.values()), dict(sorted(skipped.items())),
        sum(r.operations for r in rounds), sum(r.orders for r in rounds), sum(r.lost for r in rounds),
        sum(n for r in rounds for n in r.violations.values()), sum(r.wrong for r in rounds),
        (max(r.refusals_ms[0] for r in rounds), max(r.refusals_ms[1] for r in rounds)),
        dict(sorted(order_types.items())), faults, kept,
    )  # fmt: skip


def _row(name: str, rounds: list[Round], classes: tuple[str, ...], invariants: tuple[str, ...] = ()) -> Row:
    heals = sorted(s for r in rounds for c in classes for s in r.heals_s.get(c, ()))
    return Row(
        name, len(rounds), sum(r.faults.get(c, 0) for r in rounds for c in classes), sum(r.operations for r in rounds),
        sum(n for r in rounds for i, n in r.violations.items() if not invariants or i in invariants), len(heals),
        median(heals) if heals else None, heals[-1] if heals else None,
    )  # fmt: skip


def ranges(numbers: Iterable[int]) -> str:
    """`1-3, 7`."""
    found: list[list[int]] = []
    for n in sorted(set(numbers)):
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
