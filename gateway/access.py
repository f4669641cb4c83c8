"""Who is calling: channels by their keys, operators by the admin token. No timing tells of a secret."""

import hashlib
import hmac
from collections.abc import Mapping

MAX_SEEN = 1_024  # headers that were right, remembered as they came


class Access:
    """The keys of one deployment, kept as digests."""

    def __init__(self, channel_keys: Mapping[str, str], admin_token: str) -> None:
        """`channel_keys`: channel, or channel.N for a further key of the same channel -> secret."""
        # Looked up by digest: how long a look-up takes says nothing about the secret behind it.
        self._channels = {_digest(key.encode()): name.partition(".")[0] for name, key in channel_keys.items()}
        self._seen: dict[bytes, str] = {}
        self._admin = _digest(admin_token.encode()) if admin_token else None

    def channel(self, authorization: bytes) -> str | None:
        """The channel of an `Authorization: Bearer …` header, or None."""
        # A digest costs as much as a queue. A look-up compares bytes only where all 64 bits of a hash with a secret
        # seed are equal: it tells of a header that was right once no more than a look-up by digest.
        known = self._seen.get(authorization)
        if known is not None:
            return known
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        channel = self._channels.get(_digest(token))
        if channel is not None and len(self._seen) < MAX_SEEN:
            self._seen[authorization] = channel
        return channel

    def is_admin(self, authorization: bytes) -> bool:
        """Whether the header carries the admin token; never so if none is set."""
        scheme, _, token = authorization.partition(b" ")
        return (
            self._admin is not None and scheme.lower() == b"bearer" and hmac.compare_digest(_digest(token), self._admin)
        )


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
