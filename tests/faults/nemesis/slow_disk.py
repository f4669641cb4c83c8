"""A disk that is slow to sync: a small library, loaded before a server's own, that waits before each sync."""

import asyncio
import shutil
import subprocess
from pathlib import Path

from tests.faults.nemesis.faults import Skipped

# The number is read at each sync, so it changes while the server runs. A signal, as PostgreSQL's processes send each
# other, does not shorten the wait.
SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void dawdle(void) {
    char text[16] = {0};
    const char *path = getenv("SLOW_DISK_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    long ms = read(file, text, sizeof text - 1) > 0 ? atol(text) : 0;
    close(file);
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (ms > 0 && nanosleep(&left, &left) < 0 && errno == EINTR) {}
}

int fsync(int fd) { dawdle(); return syscall(SYS_fsync, fd); }
int fdatasync(int fd) { dawdle(); return syscall(SYS_fdatasync, fd); }
int sync_file_range(int fd, off_t at, off_t bytes, unsigned int flags) {
    dawdle();
    return syscall(SYS_sync_file_range, fd, at, bytes, flags);
}
"""


class SlowDisk:
    """What a server needs in its environment to have one, and how slow it is now."""

    def __init__(self, folder: Path, name: str) -> None:
        self._library = folder / "slow_disk.so"
        self._told = folder / f"slow_disk.{name}"

    async def make(self) -> None:
        """The library is there, and waits for nothing yet. Raises Skipped: this machine has no C compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise Skipped("no C compiler: `cc` makes the library that slows the syncs down")
        if not self._library.exists():
            draft = self._library.with_suffix(".new")
            command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-o", str(draft), "-"]
            done = await asyncio.to_thread(
                subprocess.run, command, input=SOURCE.encode(), capture_output=True, check=False
            )
            if done.returncode:
                raise Skipped(f"the library that slows the syncs down cannot be made: {done.stderr.decode()[:500]}")
            draft.chmod(0o755)  # the ledger's user reads it too
            draft.replace(self._library)
        self.set(0)

    @property
    def environment(self) -> dict[str, str]:
        """Of a server that is to have it."""
        return {"LD_PRELOAD": str(self._library), "SLOW_DISK_FILE": str(self._told)}

    def set(self, ms: int) -> None:
        """Each sync of the server waits so long from now on."""
        draft = self._told.with_name(self._told.name + ".new")
        draft.write_text(str(ms))
        draft.chmod(0o644)
        draft.replace(self._told)

    def is_under(self, pid: int | None) -> bool:
        """Whether the process has it."""
        return pid is not None and str(self._library) in Path(f"/proc/{pid}/maps").read_text()
