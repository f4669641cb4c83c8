"""Documents that are made from the code are as the code is."""

import re
from pathlib import Path

from core.settings import PREFIX, Settings
from ops.documents import GUARANTEES, METRIC_PAGE, OPERATIONS, ROOT, guarantees, metric_page, operations


def test_operations_tables_are_up_to_date() -> None:
    text = OPERATIONS.read_text("utf-8")
    assert text == operations(text), "run `make docs`"


def test_table_of_metrics_is_up_to_date() -> None:
    text = METRIC_PAGE.read_text("utf-8")
    assert text == metric_page(text), "run `make docs`"


def test_guarantees_tables_are_up_to_date() -> None:
    text = GUARANTEES.read_text("utf-8")
    assert text == guarantees(text), "run `make docs`"
    begin, end = "<!-- faults: made by `make docs` -->", "<!-- /faults -->"
    assert "old figures" not in guarantees(f"{begin}\nold figures\n{end}")


def test_operations_list_every_setting() -> None:
    text = OPERATIONS.read_text("utf-8")
    assert {f"{PREFIX}{n.upper()}" for n in Settings.__struct_fields__} <= set(re.findall(r"RUSHGATE_[A-Z_]+", text))


def test_links_in_documents_lead_to_files() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    links = [(d, target) for d in documents for target in re.findall(r"\]\(([^)#\s]+)", d.read_text("utf-8"))]
    broken = [(d.name, t) for d, t in links if "://" not in t and not (d.parent / Path(t)).exists()]
    assert broken == []


def test_guarantees_name_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "guarantees.md").read_text("utf-8")))
    written = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        written |= set(re.findall(r"def (test_\w+)", file.read_text("utf-8")))
        written.add(file.stem)
    assert named
    assert named - written == set()
