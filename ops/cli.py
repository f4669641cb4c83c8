"""The command `rushgate`. Its parts: docs/operations.md."""

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from core.errors import ConfigInvalid, Fault, Invalid
from ops import serve
from ops.processes import EX_CONFIG

EX_USAGE = 2  # argparse's own


class _Part(Protocol):
    def parser(self) -> argparse.ArgumentParser: ...
    def run(self, args: argparse.Namespace) -> int: ...


def _is_argument(field: str) -> bool:
    """Whether the field is of the command line: written as its help writes it, `--line` or `UNITS`. Fields of files and
    of what the ledger knows are in lower case."""
    return field.startswith("--") or field.isupper()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well, 1 no (e.g. an audit that is not ok), 2 wrong usage, 78 wrong settings, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    part: _Part = serve
    if not argv or argv[0] not in serve.PARTS:
        from ops import commands

        part = commands
    args = part.parser().parse_args(argv)
    try:
        return part.run(args)
    except ConfigInvalid as exc:
        print(f"rushgate: {exc.detail}", file=sys.stderr)
        return EX_CONFIG
    except Fault as exc:
        field = exc.field if isinstance(exc, Invalid) else ""
        print(f"rushgate: {field}: {exc.detail}" if field else f"rushgate: {exc.detail}", file=sys.stderr)
        return EX_USAGE if _is_argument(field) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; nobody is left to tell.
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
