"""The two ends of one HTTP exchange, as values: where it goes, and what came of it."""

import ssl
from urllib.parse import urlsplit

import msgspec


class Target(msgspec.Struct, frozen=True):
    """Where to connect, and the name to send as `Host`."""

    host: str
    port: int
    authority: str
    tls: ssl.SSLContext | None = None

    @classmethod
    def from_url(cls, url: str, verify_tls: bool = True) -> "Target":
        """Read `http(s)://host[:port]`.

        Raises:
            ValueError: another scheme, no host, a path or a query, or a port that is none.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: {url!r} is not of the form http://host:port")
        if parts.path.strip("/") or parts.query or parts.username:
            raise ValueError(f"url: {url!r} has more than scheme, host and port")
        tls = None
        if parts.scheme == "https":
            tls = ssl.create_default_context()
            if not verify_tls:
                tls.check_hostname = False
                tls.verify_mode = ssl.CERT_NONE
        return cls(parts.hostname, parts.port or (443 if tls else 80), parts.netloc, tls)


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What became of one request. Times are of the monotonic clock, in seconds.

    `status` is 0 when no answer came; `failure` then says why: `connect`, `closed`, `timeout`, `protocol` or
    `stopped`. `sent_s` is None when the request never left.
    """

    status: int
    failure: str
    body: bytes
    replayed: bool
    retry_after_s: float | None
    sent_s: float | None
    answered_s: float
