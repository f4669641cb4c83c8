"""The ledger's statements: one per file in `sql/`, whose header says what it does, takes and gives."""

from functools import cache
from importlib import resources


@cache
def query(name: str) -> str:
    """The text of `core/ledger/sql/<name>.sql`."""
    return (resources.files("core.ledger.sql") / f"{name}.sql").read_text("utf-8")
