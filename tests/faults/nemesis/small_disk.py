"""Small disks, that can be filled: a tmpfs each."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_user import make_private

LEDGER_DISK = "192m"  # a fresh ledger has 40 MB, each segment of its log 16


async def mounted(path: Path, size: str) -> bool:
    """A tmpfs of that size is on the directory; False: we may not, and nothing has changed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    return done.returncode == 0


async def unmounted(path: Path) -> None:
    """Nothing is mounted there any more."""
    await asyncio.to_thread(subprocess.run, ["umount", str(path)], check=False)


async def onto_small_disk(ledger: EmbeddedLedger) -> bool:
    """The ledger, which runs before and after, has its data on a disk of LEDGER_DISK; False: we may not mount one."""
    await ledger.stop()
    plain = ledger.dir.with_name("ledger.plain")
    ledger.dir.rename(plain)
    ledger.dir.mkdir(mode=0o700)
    is_small = await mounted(ledger.dir, LEDGER_DISK)
    if is_small:
        make_private(ledger.dir)
        copy = ["cp", "-a", f"{plain}/.", str(ledger.dir)]
        await asyncio.to_thread(subprocess.run, copy, check=True)
        await asyncio.to_thread(shutil.rmtree, plain)
    else:
        ledger.dir.rmdir()
        plain.rename(ledger.dir)
    await ledger.start()
    return is_small


def fill(ballast: Path) -> None:
    """Not one byte is free any more."""
    piece = bytes(1 << 20)
    with ballast.open("wb", buffering=0) as file:
        for size in (len(piece), os.sysconf("SC_PAGESIZE")):
            with contextlib.suppress(OSError):
                while True:
                    file.write(piece[:size])
