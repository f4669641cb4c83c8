"""The proof of work of guests: what counts, and what does not."""

import hashlib
import itertools

import pytest

from gateway.line_proof import CHALLENGE_S, ProofNeeded, Proofs, ProofWrong, guest_name, solved, zero_bits

SECRETS = ["secret-of-tickets-0"]
BITS, NOW_MS = 8, 1_000_000


def solution(challenge: str, bits: int = BITS) -> str:
    return next(str(n) for n in itertools.count() if solved(challenge, str(n), bits))


@pytest.fixture(scope="module")
def asked() -> tuple[str, str]:
    """A challenge and its solution."""
    challenge, expires_ms = Proofs(SECRETS).challenge("phone", "guest-1", BITS, NOW_MS)
    assert expires_ms == NOW_MS + CHALLENGE_S * 1000
    return challenge, solution(challenge)


def test_proof_counts_for_its_guest_and_campaign_as_often_as_it_comes(asked: tuple[str, str]) -> None:
    for _ in range(2):
        Proofs(SECRETS).judge("phone", "guest-1", *asked, NOW_MS + CHALLENGE_S * 1000 - 1)


@pytest.mark.parametrize(
    ("campaign", "guest", "secrets", "at_ms"),
    [
        ("other", "guest-1", SECRETS, NOW_MS),
        ("phone", "guest-2", SECRETS, NOW_MS),
        ("phone", "guest-1", ["another-secret-0000"], NOW_MS),
        ("phone", "guest-1", SECRETS, NOW_MS + CHALLENGE_S * 1000),
    ],
)
def test_proof_of_something_else_is_wrong(
    asked: tuple[str, str], campaign: str, guest: str, secrets: list[str], at_ms: int
) -> None:
    with pytest.raises(ProofWrong):
        Proofs(secrets).judge(campaign, guest, *asked, at_ms)


def test_proof_that_is_missing_weak_or_changed_does_not_count(asked: tuple[str, str]) -> None:
    challenge, right = asked
    proofs = Proofs(SECRETS)
    for missing in (("", right), (challenge, "")):
        with pytest.raises(ProofNeeded):
            proofs.judge("phone", "guest-1", *missing, NOW_MS)
    weak = next(str(n) for n in itertools.count() if not solved(challenge, str(n), BITS))
    changed = challenge[:-1] + ("B" if challenge[-1] == "A" else "A")
    for wrong in ((challenge, weak), (changed, right), ("x" * 400, right)):
        with pytest.raises(ProofWrong):
            proofs.judge("phone", "guest-1", *wrong, NOW_MS)


def test_zeros_are_counted_from_the_start() -> None:
    assert [zero_bits(bytes([n, 255])) for n in (255, 127, 1, 0)] == [0, 1, 7, 8]
    assert zero_bits(bytes(32)) == 256
    digest = hashlib.sha256(b"a.b").digest()
    assert solved("a", "b", zero_bits(digest))
    assert not solved("a", "b", zero_bits(digest) + 1)


def test_guest_s_name_is_as_a_buyer_id_must_be_and_tells_nothing_of_the_key() -> None:
    key = "0123456789abcdef"
    assert guest_name(key) == guest_name(key) != guest_name(key + "0")
    assert len(guest_name(key)) <= 64
    assert key not in guest_name(key)
