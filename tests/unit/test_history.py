"""A history on disk: what is recorded comes back, a cut is noticed, nonsense is named."""

import asyncio
from pathlib import Path

import pytest

from loadtest.history import (
    BUFFER_BYTES,
    Fail,
    Fault,
    Healed,
    HistoryInvalid,
    Mending,
    Ok,
    Recorder,
    Unknown,
    body_hash,
    read_history,
)


def record(path: Path) -> None:
    with Recorder(path, "sale", {"seed": 7}) as recorder:
        first = recorder.order("app", "k1", body_hash(b"1"), "b1", [("b", 1), ("a", 1), ("b", 2)], "1.2.3.4", "d1", 100)
        second = recorder.order("app", "k2", body_hash(b"2"), "b2", [("a", 1)], at_ns=110)
        recorder.fault("store_kill", "SIGKILL")
        recorder.ok(first, 202, "o1", at_ns=120)
        recorder.fail(second, 409, "sold_out", "a", at_ns=130)
        third = recorder.act("cancel", "o1")
        recorder.unknown(third, 503, "store_unavailable")
        recorder.mending("store_kill")
        recorder.healed("store_kill")
        recorder.act("restock", sku="a", units=5, move_id="m1")


def test_recorded_events_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(path)
    history = read_history(path)
    assert (history.header.campaign, history.header.settings, history.whole) == ("sale", {"seed": 7}, True)
    first, second, third, fourth = history.operations
    assert (first.ask.at_ns, first.ask.items, first.ask.ip) == (100, (("a", 1), ("b", 3)), "1.2.3.4")
    assert first.answer == Ok(120, 1, 202, "", "o1")
    assert second.answer == Fail(130, 2, 409, "sold_out", sku="a")
    assert isinstance(third.answer, Unknown)
    assert (third.ask.op, third.ask.order_id, third.result) == ("cancel", "o1", "unknown")
    assert (fourth.answer, fourth.result, fourth.ask.move_id) == (None, "unknown", "m1")
    assert [(type(f), f.name) for f in history.faults] == [(kind, "store_kill") for kind in (Fault, Mending, Healed)]
    now = history.header
    assert history.mono_ns(now.started_wall_ns + 5) == now.started_mono_ns + 5


def test_history_cut_anywhere_after_its_header_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    record(whole)
    data = whole.read_bytes()
    head = data.index(b"\n") + 1
    seen = set()
    for end in range(head, len(data)):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(data[:end])
        history = read_history(cut)
        assert not history.whole
        seen.add(len(history.operations))
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b'{"v":1}\n', "line 1 is no header"),
        (b"", "bad.jsonl is empty: no history was recorded in it"),
        (b'{"v":2,"campaign":"c","started_wall_ns":0,"started_mono_ns":0}\n', "version 2"),
        (b'HEAD{"t":"ok","at_ns":1,"n":1}\n', "line 2: operation 1 was never asked"),
        (b'HEAD{"t":"invoke","at_ns":1,"n":1,"op":"order"}\n' * 1 + b'{"t":"invoke","at_ns":1,"n":1,"op":"order"}\n',
         "line 3: operation 1 begins twice"),
        (b'HEAD{"t":"invoke","at_ns":1,"n":1,"op":"order"}\n{"t":"ok","at_ns":1,"n":1}\n{"t":"fail","at_ns":1,"n":1}\n',
         "line 4: operation 1 is answered twice"),
        (b'HEAD{"t":"what","at_ns":1}\n', "line 2"),
        (b'HEAD{"t":"inv\n{"t":"end","at_ns":1}\n', "line 2"),
        (b'HEAD{"t":"invoke","at_ns":1,"n":"x","op":"order"}\n', "line 2"),
        (b"HEAD\xff\xfe\n", "line 2"),
    ],
)  # fmt: skip
def test_file_that_is_no_history_is_refused_with_the_line(tmp_path: Path, lines: bytes, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(lines.replace(b"HEAD", b'{"v":1,"campaign":"c","started_wall_ns":0,"started_mono_ns":0}\n'))
    with pytest.raises(HistoryInvalid, match=words):
        read_history(path)


def test_recorder_never_overwrites_a_history(tmp_path: Path) -> None:
    record(tmp_path / "run.jsonl")
    with pytest.raises(FileExistsError):
        Recorder(tmp_path / "run.jsonl", "sale")
    assert read_history(tmp_path / "run.jsonl").whole


def test_recorder_keeps_no_more_in_memory_than_its_buffer(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path, "sale")
    for n in range(20_000):
        recorder.ok(recorder.order("app", f"k{n}", "0" * 16, f"b{n}", [("a", 1)]), 202, f"o{n}")
    on_disk = path.stat().st_size
    recorder.close()
    assert path.stat().st_size - on_disk <= BUFFER_BYTES + 4_096
    assert len(read_history(path).operations) == 20_000


def test_recorder_closes_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.jsonl", "sale")
    recorder.close()
    recorder.close()
    assert (tmp_path / "run.jsonl").read_bytes().count(b'"end"') == 1


async def test_recorder_is_used_by_tasks_that_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    async def client(recorder: Recorder, who: int) -> None:
        for n in range(50):
            number = recorder.order("app", f"{who}-{n}", "x", f"b{who}", [("a", 1)])
            await asyncio.sleep(0)
            recorder.fail(number, 409, "sold_out")

    with Recorder(path, "sale") as recorder:
        await asyncio.gather(*(client(recorder, who) for who in range(20)))
    history = read_history(path)
    assert sorted(op.ask.n for op in history.operations) == list(range(1, 1_001))
    assert all(op.result == "fail" for op in history.operations)
