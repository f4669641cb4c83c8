"""What a guest brings to join a line: a proof of work over a challenge of ours, and a captcha's answer.

A guest is a buyer without a channel's key. Their name is the digest of a key that their browser drew, so nobody takes
another one's name, neither a channel's buyer's nor another guest's.
"""

import base64
import hashlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from core.errors import Fault
from core.seals import Seals

GUEST = "guest-"
CHALLENGE_S = 120  # to find the proof in; a phone finds 20 bits in some seconds
MAX_CHALLENGE, MAX_SOLUTION = 512, 64


class ProofNeeded(Fault):
    """The campaign wants a proof, and there is none."""

    status = 403
    code = "proof_needed"


class ProofWrong(Fault):
    """The proof is of something else, too weak or too old."""

    status = 403
    code = "proof_wrong"


class Challenge(NamedTuple):
    """What a proof of work is over. `bits`: as many zeros the digest begins with; `nonce`: no two are the same."""

    campaign: str
    buyer_id: str
    expires_ms: int
    bits: int
    nonce: str


_decode = msgspec.json.Decoder(Challenge).decode


def guest_name(guest_key: str) -> str:
    """The buyer id of a guest."""
    digest = hashlib.sha256(b"rushgate guest " + guest_key.encode()).digest()
    return GUEST + base64.urlsafe_b64encode(digest)[:27].decode()


def zero_bits(digest: bytes) -> int:
    """How many zeros a digest begins with."""
    return len(digest) * 8 - int.from_bytes(digest, "big").bit_length()


def solved(challenge: str, solution: str, bits: int) -> bool:
    """Whether SHA-256 of `challenge.solution` begins with so many zeros."""
    return zero_bits(hashlib.sha256(f"{challenge}.{solution}".encode()).digest()) >= bits


class Proofs:
    """Issues challenges and judges proofs, without a store: a challenge carries all, and is signed."""

    def __init__(self, ticket_secrets: Sequence[str]) -> None:
        self._seals = Seals("rgw1", ticket_secrets)

    def challenge(self, campaign: str, buyer_id: str, bits: int, now_ms: int) -> tuple[str, int]:
        """A challenge, and until when (wall clock, ms) its proof counts."""
        expires_ms = now_ms + CHALLENGE_S * 1000
        made = Challenge(campaign, buyer_id, expires_ms, bits, secrets.token_urlsafe(9))
        return self._seals.seal(msgspec.json.encode(made)), expires_ms

    def judge(self, campaign: str, buyer_id: str, challenge: str, solution: str, now_ms: int) -> None:
        """Raises ProofNeeded, ProofWrong. The same proof again is as good: it leads to the same place."""
        if not challenge or not solution:
            raise ProofNeeded("ask for a challenge: POST to line/challenge, and send it with its solution")
        payload = self._seals.open(challenge.encode())
        try:
            asked = None if payload is None else _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            asked = None  # of another version of ours
        if asked is None:
            raise ProofWrong("the challenge is not one of ours")
        if (asked.campaign, asked.buyer_id) != (campaign, buyer_id):
            raise ProofWrong("the challenge is for another campaign or another guest")
        if now_ms >= asked.expires_ms:
            raise ProofWrong("the challenge is too old: ask for a new one")
        if not solved(challenge, solution, asked.bits):
            raise ProofWrong(f"the solution does not make a digest with {asked.bits} zero bits at its start")
