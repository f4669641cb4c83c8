"""How our HTTP servers, the gateway's and the console's, are asked to stop."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator

import uvicorn


class StoppableServer(uvicorn.Server):
    """uvicorn's server, whose process outlives the signal that stops it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask the server to stop, until the process ends.

        uvicorn's own raises the signal again when serving is over: the process would die of it with requests queued.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
