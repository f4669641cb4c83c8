"""docs/security.md: every threat has its test, and every test that it names is there."""

import re
from pathlib import Path

import pytest

from core.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
COLUMNS = ["threat", "at stake", "what stops it", "shown by", "left"]
_named = re.compile(r"`((?:unit|store|ledger|e2e|browser|faults)/[a-z_0-9]+\.py)(?:::(test_[a-z_0-9]+))?`")


def threats(page: str) -> list[list[str]]:
    """The rows of the table, each by its columns."""
    table = page.partition("## Threats")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert rows[0] == COLUMNS
    return rows[2:]


def missing(page: str) -> list[str]:
    """What the table names and nobody wrote, and rows without a test."""
    found = []
    for row in threats(page):
        named = _named.findall(row[3])
        if len(row) != len(COLUMNS) or not all(row) or not named:
            found.append(row[0])
        if re.sub(r"[\s,]", "", _named.sub("", row[3])):
            found.append(f"{row[0]}: not only tests: {row[3]}")
        for file, test in named:
            path = ROOT / "tests" / file
            text = path.read_text("utf-8") if path.exists() else ""
            if not re.search(rf"def {test}\(" if test else r"def test_", text):
                found.append(f"{file}::{test}")
    return found


def test_every_threat_has_tests_that_exist() -> None:
    assert len(threats(PAGE)) > 40
    assert missing(PAGE) == []


@pytest.mark.parametrize(
    "row",
    [
        "| a threat | x | y | – | z |",
        "| a threat | x | y | `unit/test_peer.py::test_no_such` | z |",
        "| a threat | x | y | `unit/test_no_such_file.py` | z |",
        "| a threat | x | y | `unit/test_peer.py`, we think | z |",
        "| a threat |  | y | `unit/test_peer.py` | z |",
    ],
)
def test_control_row_that_shows_nothing_is_found(row: str) -> None:
    assert missing(f"{PAGE.rstrip()}\n{row}\n")


def test_every_setting_named_is_one() -> None:
    known = {PREFIX + name.upper() for name in Settings.__struct_fields__} | {PREFIX + "CHANNEL_KEY"}
    assert set(re.findall(r"RUSHGATE_[A-Z_]+", PAGE)) - known == set()


def test_every_secret_of_the_settings_has_its_rotation() -> None:
    table = PAGE.partition("## Secrets")[2].partition("## Threats")[0]
    secret = [name for name in Settings.__struct_fields__ if re.search(r"(secrets?|token|keys)$", name)]
    assert len(secret) > 5
    assert [name for name in secret if f"`{PREFIX}{name.upper()}`" not in table] == []
