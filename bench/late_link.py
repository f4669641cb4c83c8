"""`python -m bench.late_link TARGET MS`: a link to a ledger that is so far away that each answer comes MS later.

TARGET is the path of a Unix socket, or HOST:PORT. Prints the port of 127.0.0.1 that it listens on. Nothing is slower
than that: what follows is on its way meanwhile. It ends with its standard input.
"""

import asyncio
import contextlib
import sys

PIECE = 65_536  # bytes


async def _carry(source: asyncio.StreamReader, to: asyncio.StreamWriter, late_s: float) -> None:
    """Until one end closes; each piece arrives `late_s` after it came, in order."""
    loop = asyncio.get_running_loop()
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1_000)

    async def arrive() -> None:
        while True:
            due_s, piece = await on_the_way.get()
            if due_s > loop.time():
                await asyncio.sleep(due_s - loop.time())
            if not piece:
                return
            to.write(piece)
            await to.drain()

    arriving = asyncio.create_task(arrive())
    with contextlib.suppress(OSError):
        while piece := await source.read(PIECE):
            await on_the_way.put((loop.time() + late_s, piece))
    await on_the_way.put((0.0, b""))
    with contextlib.suppress(OSError):
        await arriving
    to.close()


async def _serve(target: str, late_s: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if target.startswith("/"):
            far = await asyncio.open_unix_connection(target)
        else:
            host, _, port = target.rpartition(":")
            far = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_carry(reader, far[1], 0.0), _carry(far[0], writer, late_s))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], float(sys.argv[2]) / 1000))
