"""Documents made from the code: `python -m ops.documents` writes them, a test fails when they are out of date."""

import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import Meta

from core.settings import PREFIX, Settings
from gateway.problems import CODES

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = ROOT / "docs" / "operations.md"
SECTIONS = ("settings", "problems")


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


def operations(text: str) -> str:
    """The document with its made sections made anew."""
    for name, make in zip(SECTIONS, (settings_table, problems_table), strict=True):
        begin, end = f"<!-- {name}: made by `make docs` -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        if not rest:
            raise ValueError(f"{OPERATIONS.name} has no line {begin}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def _metas(hint: Any) -> list[Meta]:
    found: list[Meta] = []
    while hasattr(hint, "__metadata__"):
        found += [m for m in hint.__metadata__ if isinstance(m, Meta)]
        hint = get_args(hint)[0]
    return found


def _range(hint: Any, metas: list[Meta]) -> str:
    while hasattr(hint, "__metadata__"):
        hint = get_args(hint)[0]
    choices = [str(a) for a in get_args(hint)] if hint not in (dict[str, str],) else []
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
