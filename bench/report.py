"""`python -m bench.report`: writes the tables of docs/performance.md and the README from bench/results/*.json.

A section stands between `<!-- bench:NAME -->` and `<!-- /bench -->`, NAME a result, or a part of one: `growth.memory`.
The README's peers stand between `<!-- peers -->` and `<!-- /peers -->`. No figure in them is typed by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench import goals, model
from bench.environment import RESULTS
from bench.tables import is_spread, tables

ROOT = Path(__file__).parents[1]
PERFORMANCE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
_SECTION = re.compile(r"(<!-- bench:(?P<name>[a-z0-9_.:%-]+) -->)(?P<text>.*?)(<!-- /bench -->)", re.DOTALL)
_PEERS = re.compile(r"(<!-- peers -->)(?P<text>.*?)(<!-- /peers -->)", re.DOTALL)
FIRST = {
    "batch": "lines a request",
    "store": "orders a call",
    "intake": "connections",
    "durability": "level, orders a call",
    "relay": "topic",
    "micro": "function",
}  # headings of first columns

Results = Mapping[str, Mapping[str, Any]]


class Written(NamedTuple):
    """A document with its sections made anew, and what was not: the old text stands there."""

    text: str
    missing: list[str]


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All results by the name of their file."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def performance(text: str, results: Results, plots: Path = RESULTS) -> Written:
    """docs/performance.md."""
    return _made_anew(_SECTION, text, lambda name: section(name, results, plots, "../bench/results"))


def readme(text: str, results: Results, plots: Path = RESULTS) -> Written:
    """README.md."""
    return _made_anew(_PEERS, text, lambda _: section("peers", results, plots, "bench/results"))


def section(name: str, results: Results, plots: Path, link: str) -> str | None:
    """The Markdown of one section, its plots behind it; None if its result is missing.

    Raises:
        model.Missing: the cost model lacks a result.
    """
    if name in WHOLE:
        return WHOLE[name](results)
    first, *rest = name.split(".")
    whole = results.get(first, {})
    value: Any = {k: v for k, v in whole.items() if k not in ("environment", "settings")}
    for key in rest:
        value = value.get(key)
        if not isinstance(value, Mapping):
            return None
    if not value:
        return None
    plotted = rest[-1:] or [first, *value]
    if len(value) == 1 and isinstance(inner := next(iter(value.values())), Mapping) and not is_spread(inner):
        value = inner
    table = _peers(first, value) or tables(value, FIRST.get(first, ""))
    images = "\n".join(f"![{n.replace('_', ' ')}]({link}/{n}.svg)" for n in _plots(plotted, plots))
    return "\n\n".join(filter(None, [table, _caption(whole, value), images]))


def environment(results: Results) -> str | None:
    """The machine and the program of the newest result, as a list; None without results."""
    newest = max(
        (r["environment"] for r in results.values() if "environment" in r), key=lambda e: e["at"], default=None
    )
    return "\n".join(f"- {name}: {words}" for name, words in newest.items() if name != "load") if newest else None


# Sections that are no result of one name.
WHOLE: Mapping[str, Callable[[Results], str | None]] = {
    "model": model.section,
    "goals": goals.table,
    "environment": environment,
}


def _peers(name: str, value: Any) -> str:
    """Contestants as rows, a table for each number of connections."""
    if name not in ("peers", "sold_out"):
        return ""
    # Here, as it brings in the whole gateway, which no other section needs.
    from bench.side_by_side import markdown

    return "\n".join(markdown(value, f"{'accepted' if name == 'peers' else name}_per_s"))


def _caption(whole: Mapping[str, Any], value: Any) -> str:
    """Where and when, and what the brackets mean."""
    facts = whole.get("environment", {})
    rounds = sorted(_rounds(value))
    words = [f"Commit {facts.get('commit', 'unknown')}, {facts.get('at', 'some day')}"]
    if rounds and rounds[-1] > 1:
        n = f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]} to {rounds[-1]}"
        words.append(f"medians of {n} rounds, in brackets the least and the most")
    settings = whole.get("settings")
    if isinstance(settings, Mapping):
        words += [f"{k.replace('_', ' ')} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in settings.items()]
    return "; ".join(words) + "."


def _rounds(value: Any) -> set[int]:
    if is_spread(value):
        return {int(value.get("rounds", 1))}
    return set().union(*map(_rounds, value.values())) if isinstance(value, Mapping) else set()


def _plots(names: list[str], folder: Path) -> list[str]:
    """Plots called so, or so with more words behind `_`."""
    found = [p.stem for n in names for p in sorted(folder.glob(f"{n}.svg")) + sorted(folder.glob(f"{n}_*.svg"))]
    return list(dict.fromkeys(found))


def _made_anew(pattern: re.Pattern[str], text: str, make: Callable[[str], str | None]) -> Written:
    missing: list[str] = []

    def anew(found: re.Match[str]) -> str:
        name = found.groupdict().get("name") or "peers"
        try:
            made = make(name)
        except model.Missing as exc:
            made, name = None, f"{name} ({exc} is missing)"
        if made is None:
            missing.append(name)
            return found[0]
        opening, closing = found[1], found[0][found[0].rindex("<!--") :]
        return f"{opening}\n{made}\n{closing}"

    return Written(pattern.sub(anew, text), missing)


def main() -> int:
    """0; 1 with --check, if a document is not as the results are."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say what would change")
    args = parser.parse_args()
    results, stale = load(), False
    for path, make in ((PERFORMANCE, performance), (README, readme)):
        text = path.read_text("utf-8")
        written = make(text, results)
        for name in written.missing:
            print(f"{path.name}: no result for {name}, its old text stays")
        if written.text != text:
            stale = True
            print(f"{path.name}: {'is not as the results are' if args.check else 'written'}")
            if not args.check:
                path.write_text(written.text, "utf-8")
    return int(args.check and stale)


if __name__ == "__main__":
    sys.exit(main())
