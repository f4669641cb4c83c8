"""The nemesis' books: runs of one state of the code are added up, others never; several write to one file."""

import json
import multiprocessing
import random
from pathlib import Path

import msgspec
import pytest

from ops.documents_faults import markdown
from tests.faults.nemesis import ports, summary
from tests.faults.nemesis.__main__ import append
from tests.faults.nemesis.promises import promises
from tests.faults.nemesis.rounds import FAULTS
from tests.faults.nemesis.summary import Round, Run, read_runs, selected, summarise

NOW, THEN = "aaaa", "bbbb"


def a_round(
    seed: int, *faults: str, violations: dict[str, int] | None = None, order_type: str = "goods", skipped: str = ""
) -> Round:
    heals, wrong = {name: [seed / 10] for name in faults}, bool(violations)
    left_out = [skipped] if skipped else []
    return Round(seed, order_type, dict.fromkeys(faults, 1), left_out, 100, 10, 0, violations or {}, wrong, heals)


def a_run(tree: str, *rounds: Round, commit: str = "1234567") -> Run:
    return Run("2026-11-22T00:00:00+00:00", tree, {"commit": commit}, list(rounds))


def test_summary_adds_up_by_fault_and_by_promise() -> None:
    made = summarise([
        a_run(NOW, a_round(1, "ledger_kill"), a_round(2, "ledger_kill", "store_kill", violations={"2": 3})),
        a_run(NOW, a_round(3, "gateway_restart", order_type="reserve_at_payment", skipped="store_clock")),
    ])  # fmt: skip
    faults, kept = ({row.name: row for row in rows} for rows in (made.faults, made.promises))
    assert (faults["ledger_kill"].rounds, faults["ledger_kill"].injected, faults["ledger_kill"].operations) == (
        2,
        2,
        200,
    )
    assert (faults["ledger_kill"].heal_s_p50, faults["ledger_kill"].heal_s_max) == (pytest.approx(0.15), 0.2)  # type: ignore[comparison-overlap]  # approx
    assert (faults["store_kill"].violations, faults["store_emptied"].rounds) == (3, 0)
    assert (kept["G4"].rounds, kept["G4"].injected, kept["G4"].violations) == (3, 4, 3)
    assert (kept["G1"].rounds, kept["G1"].violations) == (3, 0)  # invariant 2 is no promise of G1
    assert (kept["G15"].rounds, kept["G15"].injected) == (1, 1)
    assert (kept["G20"].rounds, kept["G13"].rounds) == (1, 2)
    assert (made.rounds, made.seeds, made.skipped, made.wrong) == (3, "1-3", {"store_clock": 1}, 1)
    page = markdown(msgspec.to_builtins(made))
    assert "| `ledger_kill` | 2 | 2 | 200 | 3 | 0.15 | 0.20 | 2 |" in page
    assert "**3 violations**" in page


def test_rounds_on_other_code_are_not_mixed_in() -> None:
    old, mended, new = a_run(THEN, commit="old0000"), a_run(THEN, commit="old0000-dirty"), a_run(NOW, commit="new0000")
    assert selected([old, mended, new], NOW, None) == [new]
    assert selected([old, mended, new], NOW, {"old0000", "new0000"}) == [old, new]
    with pytest.raises(ValueError, match="no round of this state"):
        summarise(selected([old], NOW, None))


def test_tree_changes_with_each_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in summary.SOURCES:
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(summary, "ROOT", tmp_path)
    seen = [summary.tree()]
    for file, text in (("core/a.py", "1"), ("core/a.py", "2"), ("lua/b.lua", ""), ("core/ledger.sql", "x")):
        (tmp_path / file).write_text(text)
        seen.append(summary.tree())
    assert len(set(seen)) == 5
    (tmp_path / "core" / "notes.md").write_text("words")
    assert summary.tree() == seen[-1]


def test_every_fault_stands_behind_a_promise_of_its_own_and_every_promise_has_faults() -> None:
    known = promises()
    assert {name for p in known.values() for name in p.classes} <= set(FAULTS)
    assert all(p.classes or name in ("G1", "G2", "G4", "G5", "G6", "G7", "G11", "G16", "G17", "G18", "G19", "G20")
               for name, p in known.items())  # fmt: skip


def _append_many(file: str, who: int) -> None:
    for n in range(50):
        append(Path(file), json.dumps({"who": who, "n": n, "long": "x" * 20_000}).encode() + b"\n")


def test_several_append_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    several = [multiprocessing.get_context("spawn").Process(target=_append_many, args=(str(file), n)) for n in range(3)]
    for one in several:
        one.start()
    for one in several:
        one.join(60)
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert sorted((line["who"], line["n"]) for line in lines) == [(w, n) for w in range(3) for n in range(50)]
    assert read_runs([file]) == []  # lines of an older form name no tree


def _claim(port: int) -> bool:
    return ports.claimed(port)


def test_port_of_one_nemesis_is_not_given_to_another() -> None:
    """The same seed in two processes would draw the same ports."""
    mine = ports.free_port(random.Random(1))
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert not pool.apply(_claim, (mine,))
            ports.let_go()
            assert pool.apply(_claim, (mine,))
    finally:
        ports.let_go()
