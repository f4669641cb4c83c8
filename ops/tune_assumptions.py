"""Assumptions as a file: written with a line of explanation for each field, read strictly, edited by people."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from core.errors import ConfigInvalid
from ops.tune_model import Assumptions

HEAD = """\
# What `rushgate tune --assume THIS_FILE` reckons with. `rushgate tune --print-assumptions` writes such a file from what
# it measures. Fields that are left out keep their defaults. docs/sizing.md explains the arithmetic.
"""


def to_toml(given: Assumptions, origins: Mapping[str, str] | None = None) -> str:
    """The file. `origins`: `table.field` -> where the figure is from, told behind it."""
    parts = [HEAD]
    for table in given.__struct_fields__:
        struct = getattr(given, table)
        hints = get_type_hints(type(struct), include_extras=True)
        words = (type(struct).__doc__ or "").strip()
        parts.append(f"\n[{table}]  # {words}\n")
        for name in struct.__struct_fields__:
            origin = (origins or {}).get(f"{table}.{name}", "")
            parts.append(f"# {_description(hints[name])}\n")
            parts.append(f"{name} = {_number(getattr(struct, name))}{f'  # {origin}' if origin else ''}\n")
    return "".join(parts)


def from_toml(path: Path) -> tuple[Assumptions, dict[str, str]]:
    """The assumptions of a file, and `table.field` -> "given" for each that it names.

    Raises ConfigInvalid, naming the field and what is wrong with it.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
        found = msgspec.convert(_with_defaults(values), Assumptions)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigInvalid(f"--assume: {path} cannot be read: {exc}") from exc
    except msgspec.ValidationError as exc:
        raise ConfigInvalid(f"--assume: {path}: {exc}") from exc
    return found, {f"{table}.{name}": "given" for table, fields in values.items() for name in fields}


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The defaults, and over them what the file has."""
    found: dict[str, Any] = msgspec.to_builtins(Assumptions())
    for table, fields in values.items():
        if isinstance(fields, dict) and isinstance(found.get(table), dict):
            found[table] |= fields
        else:
            found[table] = fields  # to be refused by its name
    return found


def _description(hint: Any) -> str:
    """What the field's own Meta says, not that of the type it is made of."""
    found = [m.description for m in getattr(hint, "__metadata__", ()) if isinstance(m, msgspec.Meta) and m.description]
    while not found and hasattr(hint, "__metadata__"):
        hint = get_args(hint)[0]
        found = [m.description for m in getattr(hint, "__metadata__", ()) if m.description]
    return str(found[-1])


def _number(value: float | int) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}.0" if value >= 1_000 else f"{float(f'{value:.4g}')}"
