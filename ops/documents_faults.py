"""The tables of docs/guarantees.md that tell what the nemesis did, made from bench/results/faults/summary.json."""

import json
from pathlib import Path
from typing import Any

SUMMARY = Path(__file__).resolve().parent.parent / "bench" / "results" / "faults" / "summary.json"
HEAD = "rounds | injected | operations checked | violations | heal p50, s | heal max, s | of"


def faults_section() -> str:
    """What was run, by fault and by promise, as Markdown."""
    return markdown(json.loads(SUMMARY.read_text("utf-8"))) if SUMMARY.exists() else "No rounds are on record."


def markdown(summary: dict[str, Any]) -> str:
    """The section of one summary."""
    s = summary
    types = ", ".join(f"{name} {n}" for name, n in s["order_types"].items())
    lines = [
        f"{s['rounds']:,} rounds ({types}) of commit {', '.join(s['commits'])}, seeds {s['seeds']}: {s['injected']:,} "
        f"faults, {s['operations']:,} operations and {s['orders']:,} orders checked, **{s['violations']:,} "
        f"violations**, {s['wrong']:,} rounds wrong in any way; {s['lost']:,} accepted orders were lost with a lost "
        f"store, as documented. Slowest 429 or 503: {s['refusals_ms'][0]:,.0f} ms while no fault was felt, "
        f"{s['refusals_ms'][1]:,.0f} ms while one was.",
        "",
        *_table("fault", [row for row in s["faults"] if row["rounds"]]),
        "",
        *_table("promise", s["promises"]),
    ]
    never = [row["name"] for row in s["faults"] if not row["rounds"]]
    if never:
        lines += ["", f"In none of these rounds: {', '.join(never)}."]
    if s["skipped"]:
        skipped = ", ".join(f"{name} {n}" for name, n in s["skipped"].items())
        lines += ["", f"Skipped where the machine did not allow it, and not counted: {skipped}."]
    return "\n".join(lines)


def _table(first: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"| {first} | {HEAD} |", "|---" * 8 + "|"]
    for r in rows:
        p50, most = ("" if r[name] is None else f"{r[name]:.2f}" for name in ("heal_s_p50", "heal_s_max"))
        name = f"`{r['name']}`" if first == "fault" else r["name"]
        cells = (name, *(f"{r[k]:,}" for k in ("rounds", "injected", "operations", "violations")), p50, most)
        lines.append(f"| {' | '.join(cells)} | {r['heals']:,} |")
    return lines
