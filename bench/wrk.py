"""Debian's `wrk` on a core of its own: orders in a closed loop, a new buyer and key each, every answer counted."""

import asyncio
import json
import math
import secrets
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).with_name("wrk.lua")
SPARE_S = 12  # for the last answers after the time is up
TIMEOUT_S = 10  # of one request
_RESULT = "RESULT "
_FAULTS = ("connect", "read", "write", "timeout")


class LoadInvalid(Exception):
    """A run whose figures mean nothing: wrk failed, or a request was not answered as it should."""


class Load(NamedTuple):
    """What one run of wrk saw. Every request that was sent has its answer in `answers`."""

    answers: dict[int, int]  # HTTP status -> how many
    took_s: float  # from the first request to the last answer
    p50_ms: float
    p99_ms: float
    most_ms: float

    @property
    def total(self) -> int:
        """Answers of any status."""
        return sum(self.answers.values())

    @property
    def per_s(self) -> float:
        """Answers of any status per second."""
        return self.total / self.took_s

    def only(self, status: int) -> "Load":
        """The same load.

        Raises:
            LoadInvalid: there are answers with another status, or none at all.
        """
        if set(self.answers) != {status}:
            raise LoadInvalid(f"not every answer was {status}: {self.answers}")
        return self


def parse(said: str) -> Load:
    """What wrk.lua printed at the end of wrk's own words.

    Raises:
        LoadInvalid: the line is missing, a connection or a request failed, or an answer is missing.
    """
    line = next((line for line in said.splitlines() if line.startswith(_RESULT)), None)
    if line is None:
        raise LoadInvalid(f"wrk printed no result:\n{said.strip()}")
    found = json.loads(line.removeprefix(_RESULT))
    faults = {name: found[name] for name in _FAULTS if found[name]}
    if faults:
        raise LoadInvalid(f"connections or requests failed: {faults}")
    if not found["made"]:
        raise LoadInvalid("wrk sent nothing")
    if found["answered"] != found["made"]:
        raise LoadInvalid(f"{found['made']} requests were sent, {found['answered']} answered")
    answers = {int(status): count for status, count in found["answers"].items()}
    return Load(answers, found["took_s"], *(found[f"{name}_us"] / 1000 for name in ("p50", "p99", "most")))


async def load(url: str, campaign: str, channel_key: str, connections: int, seconds: float, core: int) -> Load:
    """Orders for one unit of `phone-red` for `seconds`, then the answers to the last of them.

    The buyers and request keys of one run have a random mark in them: no two runs share any.

    Raises:
        LoadInvalid: as `parse`, or wrk ended with an error.
    """
    command: list[str | Path] = [
        "taskset", "-c", str(core), "wrk", "-t", "1", "-c", str(connections), "-d", f"{math.ceil(seconds) + SPARE_S}s",
        "--timeout", f"{TIMEOUT_S}s", "-s", SCRIPT, url,
        "--", f"/v1/campaigns/{campaign}/orders", channel_key, secrets.token_hex(4), str(seconds),
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise LoadInvalid(f"wrk ended with {process.returncode}:\n{said.decode(errors='replace').strip()}")
    return parse(said.decode())
