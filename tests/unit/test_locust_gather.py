"""A worker's history on its way to the master, without locust."""

import os
from pathlib import Path
from typing import Any

import pytest

from loadtest import locust_gather
from loadtest.locust_gather import PART_BYTES, Gatherer, Sender


class Wire:
    """What a worker's runner sends, the master takes."""

    def __init__(self, gatherer: Gatherer, worker: str = "host_1/2") -> None:
        self.gatherer, self.worker = gatherer, worker
        self.sizes: list[int] = []

    def send_message(self, kind: str, data: dict[str, Any]) -> None:
        assert kind == locust_gather.PART
        self.sizes.append(len(data.get("bytes", b"")))
        self.gatherer.take(self.worker, data)


def test_history_of_another_machine_arrives_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    file = tmp_path / "h.jsonl"
    file.write_bytes(os.urandom(3 * PART_BYTES + 17))
    gatherer = Gatherer("r1", tmp_path / "here")
    wire = Wire(gatherer)
    sender = Sender(wire)
    sender.begin("r1")
    sender.file("r1", file, shared=False)
    gatherer.wait()
    [found] = gatherer.files
    assert found == tmp_path / "here" / "r1-host_1_2.jsonl"
    assert found.read_bytes() == file.read_bytes()
    assert gatherer.missing == {}
    assert max(wire.sizes) <= 2 * PART_BYTES


def test_history_in_the_shared_folder_is_only_named(tmp_path: Path) -> None:
    gatherer = Gatherer("r1", tmp_path)
    sender = Sender(Wire(gatherer))
    sender.begin("r1")
    sender.file("r1", tmp_path / "r1-a.jsonl", shared=True)
    assert gatherer.files == [tmp_path / "r1-a.jsonl"]


def test_worker_that_never_ends_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locust_gather, "GATHER_S", 0.1)
    gatherer = Gatherer("r1", tmp_path)
    Sender(Wire(gatherer, "a")).begin("r1")
    Sender(Wire(gatherer, "b")).begin("r1")
    Sender(Wire(gatherer, "b")).failed("r1", "the disk is full")
    gatherer.wait()
    assert set(gatherer.missing) == {"a", "b"}
    assert gatherer.missing["b"] == "the disk is full"


def test_nothing_of_another_run_or_from_outside_the_folder_is_taken(tmp_path: Path) -> None:
    gatherer = Gatherer("r1", tmp_path)
    Sender(Wire(gatherer)).begin("r0")
    gatherer.wait()
    assert gatherer.missing == {}
    sender = Sender(Wire(gatherer))
    sender.begin("r1")
    sender.file("r1", Path("/elsewhere/h.jsonl"), shared=True)
    assert gatherer.files == []
    assert "host_1/2" in gatherer.missing


def test_history_that_is_too_large_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locust_gather, "FILE_BYTES_MAX", 1_000)
    (tmp_path / "here").mkdir()
    (tmp_path / "h").write_bytes(b"x" * 5_000)
    gatherer = Gatherer("r1", tmp_path / "here")
    sender = Sender(Wire(gatherer))
    sender.begin("r1")
    sender.file("r1", tmp_path / "h", shared=False)
    assert "more than 1,000 bytes" in gatherer.missing["host_1/2"]
