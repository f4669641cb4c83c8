"""The dependency audit finds what is wrong, and says what it could not look up."""

import pytest

from tests.dependencies import LOCK, judge, lock_faults

GOOD = "msgspec==0.22.0 \\\n    --hash=sha256:00\n    # via rushgate\n"


def test_our_lock_is_whole() -> None:
    assert lock_faults(LOCK.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("redis>=5 \\", "not pinned"),
        ("redis==8.1.0", "without a hash"),
        ("redis @ https://files.example/redis.whl \\", "names a place"),
        ("--index-url=simple", "names a place"),
        ("    --hash=sha256:00 # from https://index.example", "names a place"),
    ],
)
def test_lock_that_is_not_whole(line: str, why: str) -> None:
    (told,) = lock_faults(GOOD + line + "\n")
    assert told.startswith("line 4:")
    assert why in told


def test_advisory_is_a_failure_and_silence_is_none() -> None:
    verdict = judge({
        "dependencies": [
            {"name": "a", "version": "1", "vulns": []},
            {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}]},
            {"name": "c", "version": "3", "vulns": [{"id": "PYSEC-2", "fix_versions": [], "aliases": []}]},
            {"name": "d", "skip_reason": "Dependency not found"},
        ]
    })  # fmt: skip
    assert verdict.wrong == ["b 2: PYSEC-1, mended in 3", "c 3: PYSEC-2, mended in no version yet"]
    assert verdict.unknown == ["d"]
    assert verdict.audited == 3
