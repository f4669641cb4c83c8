"""Signed messages, Standard Webhooks 1.0: to partners and from them, by one shared secret per endpoint.

What is signed is `{message id}.{timestamp}.{body}`; the body as it is on the wire, before anything decodes it.

Source: https://github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md, "Signature scheme".
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence

from core.errors import ConfigInvalid, Fault

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

TOLERANCE_S = 300  # the specification leaves the number open; its libraries all use this one
SECRET_PREFIX = "whsec_"  # noqa: S105  the public prefix of every secret
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
SECRETS_MAX = 8  # each one costs a digest per message that is verified
ID_BYTES_MAX = 128
TIMESTAMP_BYTES_MAX = 12
SIGNATURE_BYTES_MAX = 1_024  # 21 signatures: more than any rotation needs

Headers = Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]

# No full stop: it would let one signature stand for two splits of id, timestamp and body.
_ID = re.compile(rb"[\x21-\x2d\x2f-\x7e]{1,%d}" % ID_BYTES_MAX)
_DIGITS = re.compile(rb"[0-9]{1,%d}" % TIMESTAMP_BYTES_MAX)
_WANTED = {ID: ID_BYTES_MAX, TIMESTAMP: TIMESTAMP_BYTES_MAX, SIGNATURE: SIGNATURE_BYTES_MAX}


class SignatureInvalid(Fault):
    """Nobody who knows a secret signed this message, or not lately.

    The detail says which header to mend; it never holds a header's value, a secret or a signature.
    """

    status = 401
    code = "signature_invalid"


class Signer:
    """Signs with the first secret and verifies with all: to rotate, put the new one first, later drop the old."""

    def __init__(self, secrets: Sequence[str], place: str = "webhook secrets") -> None:
        """`place`: the setting they came from, for the error. Raises ConfigInvalid, which never shows a secret."""
        if not 1 <= len(secrets) <= SECRETS_MAX:
            raise ConfigInvalid(f"{place}: {len(secrets)} secrets; between 1 and {SECRETS_MAX} are needed")
        self._keys = [_key(secret, f"{place}, entry {n}") for n, secret in enumerate(secrets, 1)]

    def sign(self, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        """The three headers of a message.

        Args:
            message_id: the same for every attempt; 1 to 128 visible ASCII characters, none a full stop.
            timestamp_s: of this attempt, whole seconds since 1970.
            body: exactly the bytes that will be sent.

        Raises:
            ValueError: an id or a timestamp that `verify` would refuse.
        """
        content_id, timestamp = message_id.encode(), b"%d" % timestamp_s
        if not _ID.fullmatch(content_id) or not _DIGITS.fullmatch(timestamp):
            raise ValueError("message id: 1 to 128 visible ASCII characters without '.'; timestamp: whole seconds")
        signature = _signature(self._keys[0], b"%b.%b.%b" % (content_id, timestamp, body)).decode()
        return {ID: message_id, TIMESTAMP: str(timestamp_s), SIGNATURE: signature}

    def verify(self, headers: Headers, body: bytes, now_s: float) -> str:
        """The id of a message that was signed with one of the secrets within 300 s of `now_s`, either way.

        Args:
            headers: all of the request, names in any case. As pairs (ASGI), a repeated one is noticed and refused.
            body: the raw bytes, bounded by the caller.
            now_s: wall clock, seconds since 1970.

        Raises:
            SignatureInvalid: a header is missing, repeated, too long or malformed, the timestamp is outside the
                tolerance, or no signature matches.
        """
        found = _found(headers)
        message_id, timestamp, signatures = found[ID], found[TIMESTAMP], found[SIGNATURE]
        if not _ID.fullmatch(message_id):
            raise SignatureInvalid(f"{ID}: must be visible ASCII characters, none of them a full stop")
        if not _DIGITS.fullmatch(timestamp):
            raise SignatureInvalid(f"{TIMESTAMP}: is not a number of whole seconds since 1970")
        age_s = now_s - int(timestamp)
        if age_s > TOLERANCE_S:
            raise SignatureInvalid(f"{TIMESTAMP}: too old, more than {TOLERANCE_S} s behind our clock")
        if not age_s >= -TOLERANCE_S:
            raise SignatureInvalid(f"{TIMESTAMP}: in the future, more than {TOLERANCE_S} s ahead of our clock")
        offered = [s for s in signatures.split(b" ") if s.startswith(b"v1,")]
        if not offered:
            raise SignatureInvalid(f"{SIGNATURE}: holds no signature of the form v1,<base64>")
        content = b"%b.%b.%b" % (message_id, timestamp, body)
        matched = False
        for key in self._keys:
            expected = _signature(key, content)
            for candidate in offered:
                # Always all of them: which one matched, and whether an early one did, does not show in the time.
                matched |= hmac.compare_digest(expected, candidate)
        if not matched:
            raise SignatureInvalid(f"{SIGNATURE}: no signature matches the id, the timestamp and the raw body")
        return message_id.decode()


def _signature(key: bytes, content: bytes) -> bytes:
    """One signature, as it stands in the header."""
    return b"v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256))


def _found(headers: Headers) -> dict[str, bytes]:
    """The three headers, each there exactly once and within its bound."""
    found: dict[str, bytes] = {}
    pairs: Iterable[tuple[str, str] | tuple[bytes, bytes]]
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    for name, value in pairs:
        if not 10 <= len(name) <= 17:  # as long as the shortest and the longest of ours
            continue
        known = (name if isinstance(name, str) else name.decode("latin-1")).lower()
        if known not in _WANTED:
            continue
        if known in found:
            raise SignatureInvalid(f"{known}: stands there more than once")
        if len(value) > _WANTED[known]:
            raise SignatureInvalid(f"{known}: longer than {_WANTED[known]} bytes")
        if not value.isascii():
            raise SignatureInvalid(f"{known}: has characters that are not ASCII")
        found[known] = value.encode("ascii") if isinstance(value, str) else value
    for known in _WANTED:
        if not found.get(known):
            raise SignatureInvalid(f"{known}: this header is missing")
    return found


def _key(secret: str, place: str) -> bytes:
    if not secret.startswith(SECRET_PREFIX):
        raise ConfigInvalid(f"{place}: a secret begins with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        # Without its cause: nothing of the secret may reach a log.
        raise ConfigInvalid(f"{place}: what follows {SECRET_PREFIX} is not base64") from None
    if not SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX:
        raise ConfigInvalid(
            f"{place}: {len(key)} bytes when decoded; between {SECRET_BYTES_MIN} and {SECRET_BYTES_MAX} are needed"
        )
    return key
