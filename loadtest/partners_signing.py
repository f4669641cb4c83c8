"""The partners' own signatures, Standard Webhooks 1.0: apart from core/signing.py, so that each checks the other."""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence

TOLERANCE_S = 300


class BadSignature(Exception):
    """The message is not signed with a shared secret, or not lately; the text says which header is wrong."""


class PartnerSigner:
    """Signs with the first secret, verifies with all. Raises ValueError for a secret that is none."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = []
        for secret in secrets:
            try:
                key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
            except binascii.Error:
                key = b""
            if not (secret.startswith("whsec_") and 24 <= len(key) <= 64):
                raise ValueError("secrets: must be whsec_ and base64 of 24 to 64 bytes")
            self._keys.append(key)
        if not self._keys:
            raise ValueError("secrets: a partner has none")

    def headers(self, message_id: str, timestamp_s: int, body: bytes) -> bytes:
        """The three header lines, ready for the wire."""
        signature = self._signature(self._keys[0], message_id.encode(), b"%d" % timestamp_s, body)
        return b"webhook-id: %b\r\nwebhook-timestamp: %d\r\nwebhook-signature: %b\r\n" % (
            message_id.encode(),
            timestamp_s,
            signature,
        )

    def verify(self, headers: Mapping[bytes, bytes], body: bytes, now_s: float) -> str:
        """The message's id. Raises BadSignature."""
        message_id = headers.get(b"webhook-id", b"")
        timestamp = headers.get(b"webhook-timestamp", b"")
        if not message_id or len(message_id) > 128 or not message_id.isascii():
            raise BadSignature("webhook-id: missing, too long or not ASCII")
        if not timestamp.isdigit() or len(timestamp) > 12 or abs(now_s - int(timestamp)) > TOLERANCE_S:
            raise BadSignature("webhook-timestamp: missing, no number, or more than 300 s away from our clock")
        expected = [self._signature(key, message_id, timestamp, body) for key in self._keys]
        offered = headers.get(b"webhook-signature", b"")[:1_024].split(b" ")
        if not any(hmac.compare_digest(e, o) for e in expected for o in offered):
            raise BadSignature("webhook-signature: missing, or none matches")
        return message_id.decode()

    @staticmethod
    def _signature(key: bytes, message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
        digest = hmac.digest(key, b"%b.%b.%b" % (message_id, timestamp, body), "sha256")
        return b"v1," + binascii.b2a_base64(digest, newline=False)
