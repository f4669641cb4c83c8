"""Short signed texts that a stranger carries for us: `<kind>.<payload>.<mac>`, both parts base64url without padding.

Whoever has the secrets can tell ours from others without asking the store. The payload is not encrypted: its carrier
can read it, and cannot change it. Each kind has keys of its own, so that no text of one kind passes as another.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

SECRETS_MAX = 8  # each one costs a digest per text that is not ours
TOKEN_BYTES_MAX = 1_024
_MAC_BYTES = 43  # of a SHA-256 in base64url


class Seals:
    """Seals texts of one kind. The first secret seals, all of them open: to rotate, put the new one first."""

    def __init__(self, kind: str, secrets: Sequence[str]) -> None:
        """`kind`: 1 to 8 letters and digits, the start of every text. Without a secret nothing is sealed or opened."""
        self._start = kind.encode() + b"."
        self._keys = [hmac.digest(secret.encode(), b"rushgate " + kind.encode(), hashlib.sha256) for secret in secrets]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def seal(self, payload: bytes) -> str:
        """The sealed text. Raises ValueError for a payload that `open` would find too long, or without a secret."""
        if not self._keys:
            raise ValueError("no secret to seal with")
        signed = self._start + _encode(payload)
        sealed = signed + b"." + _mac(self._keys[0], signed)
        if len(sealed) > TOKEN_BYTES_MAX:
            raise ValueError(f"a sealed text has at most {TOKEN_BYTES_MAX} bytes")
        return sealed.decode()

    def open(self, sealed: bytes) -> bytes | None:
        """The payload of a text that one of the secrets sealed, or None. Nothing is decoded before that is known."""
        if len(sealed) > TOKEN_BYTES_MAX or not sealed.startswith(self._start):
            return None
        signed, _, mac = sealed.rpartition(b".")
        if len(mac) != _MAC_BYTES or len(signed) < len(self._start):
            return None
        ours = False
        for key in self._keys:
            # Compared as text: the last digit of base64 has bits to spare, and two texts would pass as one.
            ours |= hmac.compare_digest(_mac(key, signed), mac)
        if not ours:
            return None
        payload = signed[len(self._start) :]
        try:
            return base64.b64decode(payload + b"=" * (-len(payload) % 4), b"-_")
        except binascii.Error:
            return None


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _mac(key: bytes, signed: bytes) -> bytes:
    return _encode(hmac.digest(key, signed, hashlib.sha256))
