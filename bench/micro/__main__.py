"""`python -m bench.micro`: times the hot functions, compares with the stored ratios; exit status 1 at a regression."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.environment import RESULTS, environment, save
from bench.micro.compare import Timing, best, compared, table, timings

SESSION = Path(__file__).parent / "test_hot.py"
SESSIONS = 3  # at most: what seems slower is timed again, as other work on the machine can make it so


def session() -> dict[str, Timing]:
    """One session of pytest-benchmark. Raises SystemExit if a function fails."""
    with tempfile.TemporaryDirectory(prefix="rushgate-micro-") as folder:
        path = Path(folder) / "session.json"
        words = ["-q", "--no-header", "--benchmark-disable-gc", "--benchmark-quiet", f"--benchmark-json={path}"]
        # A process of its own: pytest's settings and its loop are no concern of the caller's.
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words, str(SESSION)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"the session failed:\n{done.stdout[-4_000:]}{done.stderr[-2_000:]}")
        return timings(json.loads(path.read_text("utf-8")))


def main() -> int:
    """0; 1 if a function takes more than the allowed share of its stored ratio."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=__doc__)
    parser.add_argument("--store", action="store_true", help="keep this session's ratios as the ones to compare with")
    args = parser.parse_args()
    facts = environment()
    for name, words in facts.items():
        print(f"{name:9} {words}")
    path = RESULTS / "micro.json"
    known = json.loads(path.read_text("utf-8"))["micro"] if path.exists() else {}
    stored = {} if args.store else {name: values["ratio"] for name, values in known.items()}
    sessions = [session()]
    while len(sessions) < SESSIONS and (args.store or any(row.regressed for row in compared(best(sessions), stored))):
        sessions.append(session())
    now = best(sessions)
    rows = compared(now, stored)
    print(f"\nhot functions, the least of {len(sessions)} sessions; ratio: to the calibrating loop beside it")
    print(table(rows))
    if args.store:
        values = {name: {"ratio": round(t.ratio, 4), "us": round(t.us, 3)} for name, t in now.items()}
        print(f"  kept in {save('micro', {'environment': facts, 'micro': values})}")
    elif not stored:
        print("nothing is stored yet: keep these with --store")
    return int(any(row.regressed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
