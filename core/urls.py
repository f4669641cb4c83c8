"""URLs of settings, judged before a library reads them: what that says of a wrong one may hold part of its password."""

import re
from urllib.parse import urlsplit

WRONG = (
    "is no URL of the form scheme://user:password@host:port/…; in a password / ? # [ ] @ must be written as "
    "%2F %3F %23 %5B %5D %40"
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
    hosts = [_host(host) for host in parts.netloc.rpartition("@")[2].split(",")]
    known = all(host is not None and int(host[1] or 0) <= 65_535 for host in hosts)
    # What follows an unwritten / or # in a password ends in the path or the fragment, the @ with it.
    if not known or "@" in parts.path or parts.fragment:
        raise ValueError(WRONG)
