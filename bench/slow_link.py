"""`python -m bench.slow_link HOST PORT BYTES_S`: a TCP link to a store that takes so many bytes a second a connection.

Prints the port it listens on. What the store answers is not slowed down. It ends with its standard input.
"""

import asyncio
import contextlib
import sys

PIECE = 4_096  # bytes; smaller than what is sent in 10 ms, so that the flow is even


async def _carry(source: asyncio.StreamReader, to: asyncio.StreamWriter, bytes_s: float) -> None:
    """Until one end closes. `bytes_s` 0: as fast as they come."""
    loop = asyncio.get_running_loop()
    free_s = 0.0  # when the link has carried what it was given
    with contextlib.suppress(OSError):
        while piece := await source.read(PIECE):
            if bytes_s:
                free_s = max(free_s, loop.time()) + len(piece) / bytes_s
                if free_s - loop.time() > 0:
                    await asyncio.sleep(free_s - loop.time())
            to.write(piece)
            await to.drain()
    to.close()


async def _serve(host: str, port: int, bytes_s: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await asyncio.open_connection(host, port)
        await asyncio.gather(_carry(reader, far[1], bytes_s), _carry(far[0], writer, 0.0))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=PIECE)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
