"""Ports that no other nemesis on this machine has: several run at once, and a killed process comes back to its port."""

import fcntl
import os
import random
import tempfile
from pathlib import Path

from ops.embedded_store import FREE_PORTS, port_is_free

FOLDER = Path(tempfile.gettempdir()) / "rushgate-nemesis-ports"
_claims: dict[int, int] = {}  # port -> descriptor of its locked file; a process that dies lets go of all


def free_port(draw: random.Random) -> int:
    """A port of 127.0.0.1 below those of outgoing connections, so that a restart finds it free; ours until `let_go`."""
    while True:
        port = draw.choice(FREE_PORTS)
        if port not in _claims and claimed(port):
            if port_is_free(port):
                return port
            os.close(_claims.pop(port))


def claimed(port: int) -> bool:
    """Whether the port is ours from now on."""
    FOLDER.mkdir(exist_ok=True)
    fd = os.open(FOLDER / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return False
    _claims[port] = fd
    return True


def let_go() -> None:
    """All ports of this process may be taken by others."""
    while _claims:
        os.close(_claims.popitem()[1])
