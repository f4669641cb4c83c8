"""How the histories of all workers come to the master. Needs locust's runners, and nothing to set up.

A worker that sees the master's folder (one machine, a shared file system) records straight into it. Any other records
on its own disk and sends the file, compressed, in parts, over locust's own connection.
"""

import logging
import re
import zlib
from io import BufferedWriter
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped] # it has none

from loadtest.history_gather import SUFFIX

logger = logging.getLogger("rushgate.loadtest")

PART, FINISH = "rushgate_history", "rushgate_finish"  # worker -> master; master -> workers
PART_BYTES = 1 << 18
FILE_BYTES_MAX = 1 << 30  # of one worker's history
GATHER_S = 120.0  # from one part to the next; then the worker is given up
_ODD = re.compile(r"[^A-Za-z0-9_.-]")


class Sender:
    """A worker's side."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def begin(self, run: str) -> None:
        """The master knows that a history is to come."""
        self._send({"run": run, "kind": "begin"})

    def file(self, run: str, file: Path, shared: bool) -> None:
        """The master has the file. Raises OSError."""
        if not shared:
            packer = zlib.compressobj(3)
            with file.open("rb") as source:
                while piece := source.read(PART_BYTES):
                    self._send({"run": run, "kind": "part", "bytes": packer.compress(piece)})
                    gevent.sleep(0)  # its heartbeats go on
            self._send({"run": run, "kind": "part", "bytes": packer.flush()})
        self._send({"run": run, "kind": "end", "file": str(file) if shared else ""})

    def failed(self, run: str, why: str) -> None:
        """The master need not wait."""
        self._send({"run": run, "kind": "failed", "why": why})

    def _send(self, data: dict[str, Any]) -> None:
        self._runner.send_message(PART, data)


class Gatherer:
    """The master's side, for one run."""

    def __init__(self, run: str, folder: Path) -> None:
        self.run = run
        self.files: list[Path] = []
        self.missing: dict[str, str] = {}  # worker -> why
        self._folder = folder
        self._open: dict[str, tuple[BufferedWriter, Any] | None] = {}
        self._heard = 0

    def take(self, worker: str, data: Any) -> None:
        """One message of a worker. What is not of this run is left aside."""
        if not isinstance(data, dict) or data.get("run") != self.run:
            return
        self._heard += 1
        kind = data.get("kind")
        try:
            if kind == "begin":
                self._open.setdefault(worker, None)
            elif kind == "part" and worker in self._open:
                self._write(worker, data["bytes"])
            elif kind == "end" and worker in self._open:
                self._end(worker, data["file"])
            elif kind == "failed" and worker in self._open:
                self._give_up(worker, str(data["why"]))
        except (OSError, zlib.error, ValueError) as exc:
            self._give_up(worker, str(exc))

    def wait(self) -> None:
        """Every worker that began has sent its history, or is given up as missing."""
        heard, waited_s = -1, 0.0
        while self._open:
            if heard != self._heard:
                heard, waited_s = self._heard, 0.0
            if waited_s >= GATHER_S:
                break
            gevent.sleep(0.05)
            waited_s += 0.05
        for worker in list(self._open):
            self._give_up(worker, f"nothing came for {GATHER_S:g} s")

    def _write(self, worker: str, packed: bytes) -> None:
        found = self._open[worker]
        if found is None:
            file = (self._folder / f"{self.run}-{_ODD.sub('_', worker)}{SUFFIX}").open("xb")
            found = self._open[worker] = (file, zlib.decompressobj())
        file, unpacker = found
        left = FILE_BYTES_MAX - file.tell()
        file.write(unpacker.decompress(packed, left))
        if unpacker.unconsumed_tail:
            raise ValueError(f"its history has more than {FILE_BYTES_MAX:,} bytes")

    def _end(self, worker: str, shared: str) -> None:
        found = self._open.pop(worker)
        if found is None:
            path = Path(shared)
            if path.parent != self._folder:
                raise ValueError(f"its history is not in {self._folder}")
            self.files.append(path)
            return
        file, unpacker = found
        with file:
            file.write(unpacker.flush())
        self.files.append(Path(file.name))

    def _give_up(self, worker: str, why: str) -> None:
        found = self._open.pop(worker, None)
        if found is not None:
            found[0].close()
        self.missing[worker] = why
        logger.error("no history from worker %s: %s", worker, why)
