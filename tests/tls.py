"""TLS in front of the real services, whose embedded builds speak none: what a proxy or a managed service does."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator

SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # Postgres: "may we speak TLS?"


class TlsFront:
    """Takes TLS on a free port of 127.0.0.1 and passes plain bytes on to `target`: host and port, or a socket's path.

    `postgres`: TLS begins after Postgres' own question. `handshakes` counts the connections that got as far.
    """

    def __init__(self, context: ssl.SSLContext, target: tuple[str, int] | str, *, postgres: bool = False) -> None:
        self.handshakes = 0
        self.port = 0
        self._context = context
        self._target = target
        self._postgres = postgres

    async def serve(self) -> None:
        """Until cancelled."""
        context = None if self._postgres else self._context
        server = await asyncio.start_server(self._one, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            await server.serve_forever()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._postgres:
                if await reader.readexactly(8) != SSL_REQUEST:
                    return  # this server takes no plain connection
                writer.write(b"S")
                await writer.start_tls(self._context)
            self.handshakes += 1
            if isinstance(self._target, str):
                far_reader, far_writer = await asyncio.open_unix_connection(self._target)
            else:
                far_reader, far_writer = await asyncio.open_connection(*self._target)
            await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def served(*fronts: TlsFront) -> Iterator[None]:
    """All of them serve, in a thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    tasks = [asyncio.run_coroutine_threadsafe(front.serve(), loop) for front in fronts]

    async def all_listen() -> None:
        async with asyncio.timeout(10):
            while not all(front.port for front in fronts):  # noqa: ASYNC110 - the port is not an event
                await asyncio.sleep(0.01)

    async def end() -> None:
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    try:
        asyncio.run_coroutine_threadsafe(all_listen(), loop).result()
        yield
    finally:
        for task in tasks:
            task.cancel()
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
