"""Where the console listens, and the address to open it at."""

import socket
import sys

from core.errors import ConfigInvalid
from core.settings import Settings
from gateway.process import listen

ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def listening(settings: Settings, or_free: bool) -> socket.socket:
    """A listening socket of the settings' address. `or_free`: on a free port if that one is taken, and says so on
    stderr.

    Raises: ConfigInvalid, with the setting to change.
    """
    host, port = settings.console_host, settings.console_port
    try:
        return listen(host, port, reuse_port=False)
    except ConfigInvalid as exc:
        why = str(exc).partition(": set ")[0]
        if not or_free or not port:
            raise ConfigInvalid(f"{why}: set RUSHGATE_CONSOLE_PORT to another one") from exc
        sock = listening(settings.with_values(console_port=0), False)
        print(f"rushgate: warning: console: {why}; it is at {url_of(settings, sock)}", file=sys.stderr, flush=True)
        return sock


def url_of(settings: Settings, sock: socket.socket) -> str:
    """What to open in a browser on this machine."""
    host = "127.0.0.1" if settings.console_host in ANYWHERE else settings.console_host
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}/console/"
