"""URLs of settings, judged before a library reads them: what that says of a wrong one may hold part of its password."""

import re
from typing import Any
from urllib.parse import urlsplit

WRONG = (
    "is no URL of the form scheme://user:password@host:port/…; in a password / ? # [ ] @ must be written as "
    "%2F %3F %23 %5B %5D %40"
)
UNKNOWN = (
    "has a parameter behind its ? that is unknown or has a wrong value; known are those of redis-py's connections, "
    "such as ssl_ca_certs, ssl_certfile, ssl_keyfile, username, password, db"
)
_host = re.compile(r"(?:[A-Za-z0-9._~-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\])(?::([0-9]{1,5}))?").fullmatch


def check_url(text: str, *schemes: str) -> None:
    """Raises ValueError unless the text is a URL of one of the schemes; its words hold nothing of the text.

    A list of hosts (`a:5432,b:5432`) is one, and so is none (`postgresql:///db?host=/run`).
    """
    if not text.startswith(tuple(f"{scheme}://" for scheme in schemes)):
        names = [f"{scheme}://" for scheme in schemes]
        raise ValueError("must begin with " + " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))))
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(WRONG) from None  # its cause would be shown with it
    # Whether the first or the last @ ends the password is told otherwise by every library: asyncpg would look up the
    # rest of it as a host, in clear.
    hosts = [_host(host) for host in parts.netloc.partition("@")[2 if "@" in parts.netloc else 0].split(",")]
    known = all(host is not None and int(host[1] or 0) <= 65_535 for host in hosts)
    # What follows an unwritten / or # in a password ends in the path or the fragment, the @ with it.
    if not known or "@" in parts.path or parts.fragment:
        raise ValueError(WRONG)


def check_store_url(text: str) -> None:
    """Raises ValueError unless redis-py can make a connection of the URL; as check_url."""
    check_url(text, "redis", "rediss", "unix")
    if "?" not in text:
        return
    # A tenth of a second, which few commands need.
    from redis.asyncio.connection import Connection, parse_url
    from redis.exceptions import RedisError

    try:
        given: dict[str, Any] = dict(parse_url(text))
        kind = given.pop("connection_class", Connection)
        kind(**given)
    except (TypeError, ValueError, RedisError):
        raise ValueError(UNKNOWN) from None
