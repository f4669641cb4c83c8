"""Signed requests: how a channel's server proves that a request is its own without ever sending its secret.

What is signed is seven lines and the body: the version of this form, the time, the method, the path with its query as
it is sent, the key's id, the request key (empty if there is none), an empty line; then the body, byte for byte.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping

KEY, TIME, SIGNATURE = b"rushgate-key", b"rushgate-time", b"rushgate-signature"
HEADERS = (KEY, TIME, SIGNATURE)
REQUEST_KEY = b"idempotency-key"

VERSION = b"rushgate-v1"
PREFIX = b"v1="
TOLERANCE_S = 300
KEY_ID_MAX = 32
SIGNATURE_BYTES = len(PREFIX) + 64

_DIGITS = re.compile(rb"[0-9]{1,12}").fullmatch


def signature(secret: bytes, head: bytes, body: bytes) -> bytes:
    """The value of the header `Rushgate-Signature`; `head`: as `signed_head` makes it."""
    return PREFIX + hmac.digest(secret, head + body, hashlib.sha256).hex().encode()


def signed_head(at: bytes, method: bytes, target: bytes, key_id: bytes, request_key: bytes) -> bytes:
    """All that is signed before the body. No part holds a line break: HTTP lets none through."""
    return b"%b\n%b\n%b\n%b\n%b\n%b\n\n" % (VERSION, at, method, target, key_id, request_key)


def sign(
    secret: str, key_id: str, at_s: int, method: str, target: str, body: bytes = b"", request_key: str = ""
) -> dict[str, str]:
    """The three headers of a signed request.

    Args:
        secret: of a signing key, the whole text.
        key_id: of the same key.
        at_s: now, whole seconds since 1970.
        target: the path with its query, as in the first line of the request.
        body: exactly the bytes that are sent.
        request_key: what the request carries as `Idempotency-Key`, if it does.
    """
    head = signed_head(b"%d" % at_s, method.encode(), target.encode(), key_id.encode(), request_key.encode())
    signed = signature(secret.encode(), head, body)
    return {"Rushgate-Key": key_id, "Rushgate-Time": str(at_s), "Rushgate-Signature": signed.decode()}


def wrong(heads: Mapping[bytes, bytes], now_s: float) -> str:
    """What is wrong with the three headers by themselves, or ''. Never a header's value."""
    key_id, at, signed = heads.get(KEY, b""), heads.get(TIME, b""), heads.get(SIGNATURE, b"")
    if not 0 < len(key_id) <= KEY_ID_MAX:
        return "Rushgate-Key: must be the id of a signing key"
    if not _DIGITS(at):
        return "Rushgate-Time: must be a number of whole seconds since 1970"
    if len(signed) != SIGNATURE_BYTES or not signed.startswith(PREFIX):
        return "Rushgate-Signature: must be v1= and 64 hexadecimal digits, in small letters"
    age_s = now_s - int(at)
    if age_s > TOLERANCE_S:
        return f"Rushgate-Time: more than {TOLERANCE_S} s behind our clock"
    if not age_s >= -TOLERANCE_S:
        return f"Rushgate-Time: more than {TOLERANCE_S} s ahead of our clock"
    return ""
