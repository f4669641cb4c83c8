"""Histories of several processes as one."""

from pathlib import Path

import pytest

from loadtest.history import History, HistoryInvalid, Recorder, read_history
from loadtest.history_gather import MACHINE, read_gathered, together


def record(path: Path, key: str, campaign: str = "sale", machine: str = "m1") -> History:
    with Recorder(path, campaign, {MACHINE: machine}) as recorder:
        n = recorder.order("app", key, "hash", "b", [("red", 1)])
        recorder.ok(n, 202, f"order-{key}")
        recorder.act("cancel", f"order-{key}")
    return read_history(path)


def test_folder_is_one_history_with_numbers_of_its_own(tmp_path: Path) -> None:
    record(tmp_path / "a.jsonl", "k1")
    record(tmp_path / "b.jsonl", "k2")
    whole = read_gathered(tmp_path)
    assert sorted(op.ask.n for op in whole.operations) == [1, 2, 3, 4]
    assert {op.answer.order_id for op in whole.operations if op.answer} == {"order-k1", "order-k2"}
    assert all(op.answer.n == op.ask.n for op in whole.operations if op.answer)
    assert whole.whole


def test_processes_of_one_machine_keep_their_times(tmp_path: Path) -> None:
    a, b = record(tmp_path / "a.jsonl", "k1"), record(tmp_path / "b.jsonl", "k2")
    found = {op.ask.key: op.ask.at_ns for op in together([a, b]).operations if op.ask.key}
    assert found == {"k1": a.operations[0].ask.at_ns, "k2": b.operations[0].ask.at_ns}


def test_machines_are_tied_by_their_wall_clocks(tmp_path: Path) -> None:
    a = record(tmp_path / "a.jsonl", "k1")
    path = tmp_path / "b.jsonl"
    record(path, "k2", machine="m2")
    # The same moments on a machine that was started a thousand seconds later.
    text = path.read_text()
    b = read_history(path)
    for at in {b.header.started_mono_ns, b.end_ns, *(o.ask.at_ns for o in b.operations)} | {
        o.answer.at_ns for o in b.operations if o.answer
    }:
        text = text.replace(str(at), str(at - 1_000_000_000_000))
    path.write_text(text)
    later = read_history(path)
    assert later.operations[0].ask.at_ns < 0 or later.operations[0].ask.at_ns < b.operations[0].ask.at_ns
    whole = together([a, later])
    found = {op.ask.key: op.ask.at_ns for op in whole.operations if op.ask.key}
    # The wall clock was read once in each header, a moment apart from the monotonic one.
    assert found["k2"] == pytest.approx(b.operations[0].ask.at_ns, abs=5_000_000)


def test_one_broken_history_makes_the_whole_one_broken(tmp_path: Path) -> None:
    record(tmp_path / "a.jsonl", "k1")
    record(tmp_path / "b.jsonl", "k2")
    lines = (tmp_path / "b.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_bytes(b"".join(lines[:-1]))
    assert not read_gathered(tmp_path).whole


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HistoryInvalid, match="no history"):
        read_gathered(tmp_path)
    a, b = record(tmp_path / "a.jsonl", "k1"), record(tmp_path / "b.jsonl", "k2", campaign="other")
    with pytest.raises(HistoryInvalid, match="other, sale"):
        together([a, b])
    with pytest.raises(HistoryInvalid):
        together([])
