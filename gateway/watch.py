"""Says in the log when the store goes away and when it is back: once each, however many requests meet it."""

import logging
from collections.abc import Sequence
from typing import Literal

from core.errors import Recovering, StoreUnavailable
from core.flood import SampledLog
from lua.connection import Command, LocalLevel, Reply, SharedConnection
from lua.durability import Level

logger = logging.getLogger("rushgate.gateway")


class StoreWatch:
    """What the process last saw of the store; all its connections tell it."""

    def __init__(self) -> None:
        self._state: Literal["there", "away", "refusing"] = "there"
        self._told = False
        events = "store refuses orders", "store is away"
        self._events = {event: SampledLog(logger, logging.WARNING, event, burst=5) for event in events}

    @property
    def is_there(self) -> bool:
        """Whether its last answer was one that this process can use."""
        return self._state == "there"

    def lost(self, exc: StoreUnavailable, refused: bool = False) -> None:
        """No usable answer. `refused`: the store answers, and will not carry out a reservation. One that answers and is
        not admitted refuses too: while it is not, every question beside the orders is answered."""
        refused = refused or isinstance(exc, Recovering)
        state: Literal["away", "refusing"] = "refusing" if refused or self._state == "refusing" else "away"
        if state != self._state:
            self._state = state
            event = "store refuses orders" if refused else "store is away"
            self._told |= self._events[event](code=exc.code, why=exc.detail)

    def answered(self, reserved: bool = False) -> None:
        """An answer. `reserved`: to a reservation; only that shows that one who refused them takes them again."""
        if self._state == "away" or (reserved and self._state == "refusing"):
            self._state = "there"
            if self._told:  # else its going was not told either: it comes and goes many times a second
                logger.info("store is back")
            self._told = False


class WatchedConnection(SharedConnection):
    """A shared connection that tells the watch of its answers."""

    def __init__(self, url: str, level: Level | LocalLevel, timeout_s: float, name: str, watch: StoreWatch) -> None:
        super().__init__(url, level, timeout_s, name)
        self._watch = watch

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        try:
            replies = await super().exchange(commands)
        except StoreUnavailable as exc:
            self._watch.lost(exc)
            raise
        self._watch.answered()
        return replies
