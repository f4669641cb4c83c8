"""The dependency audit of `make check`: the lock is whole, and nothing in it is known to be vulnerable.

Advisories come from the package index by pip-audit. An index that has none to give (a mirror, no network) is told
loudly and is no failure: what cannot be looked up is not thereby wrong.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

LOCK = Path(__file__).parent.parent / "requirements.lock"
WAIT_S = 180
# Advisories that do not touch us: id -> why. Each is looked at again when its package is updated.
ACCEPTED: dict[str, str] = {}

_pinned = re.compile(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ]+( ; .*)? \\$")


class Verdict(NamedTuple):
    """What is wrong, and what could not be looked up."""

    wrong: list[str]
    unknown: list[str]
    audited: int


def lock_faults(text: str) -> list[str]:
    """What in a lock is not pinned, has no hash, or names a host."""
    wrong = []
    for n, line in enumerate(text.splitlines(), 1):
        if "://" in line or line.lstrip().startswith(("--index-url", "--extra-index-url", "--find-links", "-e ")):
            wrong.append(f"line {n}: names a place")
        elif line and not line.startswith((" ", "#")) and not _pinned.match(line):
            wrong.append(f"line {n}: not pinned, or without a hash: {line[:60]}")
    return wrong


def judge(found: dict[str, Any]) -> Verdict:
    """The verdict on pip-audit's JSON."""
    wrong, unknown, audited = [], [], 0
    for one in found["dependencies"]:
        if "skip_reason" in one:
            unknown.append(one["name"])
            continue
        audited += 1
        for advisory in one["vulns"]:
            if advisory["id"] not in ACCEPTED:
                mended = ", ".join(advisory.get("fix_versions") or ["no version yet"])
                wrong.append(f"{one['name']} {one['version']}: {advisory['id']}, mended in {mended}")
    return Verdict(wrong, unknown, audited)


def main() -> int:
    """Exit status 0 if nothing is known to be wrong."""
    wrong = lock_faults(LOCK.read_text("utf-8"))
    if wrong:
        print("requirements.lock:", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--require-hashes", "--disable-pip"]
    try:
        ran = subprocess.run(
            [*command, "--progress-spinner", "off", "-f", "json"], capture_output=True, text=True, timeout=WAIT_S
        )
        verdict = judge(json.loads(ran.stdout))
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as exc:
        print(f"WARNING: no advisories could be had ({type(exc).__name__}): nothing was audited", file=sys.stderr)
        return 0
    if verdict.wrong:
        print("known to be vulnerable:", *verdict.wrong, sep="\n  ", file=sys.stderr)
        return 1
    if verdict.unknown:
        which = "none" if not verdict.audited else f"{verdict.audited} only"
        print(
            f"WARNING: the index has no advisories for {len(verdict.unknown)} packages; audited: {which}",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
