"""Documents made from the code: `python -m ops.documents` writes them, a test fails when they are out of date."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from core.flows import FLOWS, REFUND
from core.flows.table import GUARDS, MACHINES, ROLES, TOPICS, Flow, Step
from core.metrics_table import ALL, GATHERED, METRICS, OF_THE_CLIENT, WORKERS
from core.settings import PREFIX, Settings
from gateway.problems import CODES
from ops.documents_faults import faults_section

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = ROOT / "docs" / "operations.md"
FLOW_PAGE = ROOT / "docs" / "flows.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
METRIC_PAGE = ROOT / "docs" / "metrics.md"


def settings_table() -> str:
    """Every setting with default, range and meaning, as a Markdown table."""
    hints = get_type_hints(Settings, include_extras=True)
    rows = ["| setting | default | range | meaning |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(Settings):
        metas = _metas(hints[field.name])
        words = next(m.description for m in metas if m.description)
        default = (
            "`" + str(field.default).replace("{}", "") + "`" if field.default not in ("", msgspec.NODEFAULT) else ""
        )
        if field.default is msgspec.NODEFAULT:
            default = ""
        rows.append(f"| `{PREFIX}{field.name.upper()}` | {default} | {_range(hints[field.name], metas)} | {words} |")
    return "\n".join(rows)


def problems_table() -> str:
    """Every code of an error answer, as a Markdown table."""
    rows = ["| status | code | meaning |", "|---|---|---|"]
    rows += [f"| {status} | `{code}` | {title} |" for code, (status, title) in CODES.items()]
    return "\n".join(rows)


def flow_diagram(flow: Flow) -> str:
    """The moves from state to state, as a mermaid diagram; `back` marks states that lead to the wanted end no more."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {flow.first}"]
    for step in flow.steps:
        if step.to != step.state:
            guard = f" [{step.guard}]" if step.guard else ""
            lines.append(f"    {step.state} --> {step.to}: {step.action}{guard}")
    lines += [f"    {end} --> [*]" for end in flow.ends]
    ahead = flow.leading_to(flow.ends[:1])
    if back := [s for s in flow.states if s not in ahead]:
        lines += ["    classDef back stroke-dasharray: 4 3", f"    class {','.join(back)} back"]
    return "\n".join([*lines, "```"])


def flow_steps(flow: Flow) -> str:
    """Every move as a Markdown table; moves that differ in their state only share a row."""
    rows = ["| state | action | actors | to | guard | reason | messages |", "|---|---|---|---|---|---|---|"]
    alike: dict[Step, list[str]] = {}
    for step in flow.steps:
        to = "" if step.to == step.state else step.to
        alike.setdefault(step._replace(state="", to=to), []).append(step.state)
    for step, states in alike.items():
        to = _code(step.to) if step.to else "stays"
        cells = (_code(*states), _code(step.action), ", ".join(step.actors), to, _code(step.guard), step.reason)
        rows.append(f"| {' | '.join(cells)} | {', '.join(step.messages)} |")
    return "\n".join(rows)


def flow_names(flow: Flow) -> str:
    """What each role calls each state, and where the state leads to, as a Markdown table."""
    unaided = flow.leading_to(flow.ends, MACHINES)
    rows = [f"| state | {' | '.join(ROLES)} | next |", "|---|---|---|---|---|"]
    for state in flow.states:
        onward = "end" if state in flow.ends else "an end, unaided" if state in unaided else "**waits for a person**"
        rows.append(f"| `{state}` | {' | '.join(flow.name(state, role) for role in ROLES)} | {onward} |")
    return "\n".join(rows)


def flow_section(flow: Flow) -> str:
    """All of one flow: the diagram and both tables."""
    return "\n" + "\n\n".join((flow_diagram(flow), flow_steps(flow), flow_names(flow))) + "\n"


def glossary(words: Mapping[str, str], kind: str) -> str:
    """Words and their meanings as a Markdown table."""
    return "\n".join([f"| {kind} | meaning |", "|---|---|", *(f"| `{w}` | {m} |" for w, m in words.items())])


def metrics_table() -> str:
    """Every metric with its kind, labels, processes and meaning, as a Markdown table."""
    rows = ["| metric | kind | labels | of | meaning |", "|---|---|---|---|---|"]
    for metric in (*METRICS, *GATHERED, *OF_THE_CLIENT):
        of = "all" if metric.of == ALL else "workers" if metric.of == WORKERS else ", ".join(metric.of)
        rows.append(f"| `{metric.name}` | {metric.kind} | {_code(*metric.labels)} | {of} | {metric.help} |")
    return "\n".join(rows)


def operations(text: str) -> str:
    """docs/operations.md with its made sections made anew."""
    return _made_anew(text, {"settings": settings_table, "problems": problems_table})


def flow_page(text: str) -> str:
    """docs/flows.md with its made sections made anew."""
    flows = [*FLOWS.values(), REFUND]
    sections: dict[str, Callable[[], str]] = {f.order_type: partial(flow_section, f) for f in flows}
    return _made_anew(
        text, sections | {"topics": partial(glossary, TOPICS, "topic"), "guards": partial(glossary, GUARDS, "guard")}
    )


def metric_page(text: str) -> str:
    """docs/metrics.md with its made section made anew."""
    return _made_anew(text, {"metrics": metrics_table})


def guarantees(text: str) -> str:
    """docs/guarantees.md with the tables of the nemesis' rounds made anew, where it has a place for them."""
    return _made_anew(text, {"faults": faults_section}) if "<!-- faults:" in text else text


def _made_anew(text: str, sections: Mapping[str, Callable[[], str]]) -> str:
    for name, make in sections.items():
        begin, end = f"<!-- {name}: made by `make docs` -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        if not rest:
            raise ValueError(f"the document has no line {begin}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def _code(*words: str) -> str:
    return ", ".join(f"`{w}`" for w in words if w)


def _metas(hint: Any) -> list[Meta]:
    found: list[Meta] = []
    while hasattr(hint, "__metadata__"):
        found += [m for m in hint.__metadata__ if isinstance(m, Meta)]
        hint = get_args(hint)[0]
    return found


def _range(hint: Any, metas: list[Meta]) -> str:
    while hasattr(hint, "__metadata__"):
        hint = get_args(hint)[0]
    choices = [str(a) for a in get_args(hint)] if get_origin(hint) is Literal else []
    if choices:
        return ", ".join(f"`{c}`" for c in choices)
    for meta in metas:
        low = meta.ge if meta.ge is not None else meta.gt
        high = meta.le
        if low is not None and high is not None:
            return f"{'above ' if meta.gt is not None else ''}{low:,} to {high:,}"
    return ""


def main() -> int:
    """Writes the documents."""
    OPERATIONS.write_text(operations(OPERATIONS.read_text("utf-8")), "utf-8")
    FLOW_PAGE.write_text(flow_page(FLOW_PAGE.read_text("utf-8")), "utf-8")
    METRIC_PAGE.write_text(metric_page(METRIC_PAGE.read_text("utf-8")), "utf-8")
    GUARANTEES.write_text(guarantees(GUARANTEES.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
