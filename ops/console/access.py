"""Who may order, on the page: the channels with the state of their keys, and the block list."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.routing import BaseRoute

from core.desk.access_books import AccessBooks
from core.desk.blocks import BlockDesk, BlockKind, BlockSpec
from core.desk.channels import ChannelDesk
from gateway.body import decode
from ops.console.guard import Guard, body_of
from ops.console.sessions import Session
from ops.desk import Desk

SHOWN_MAX = 500  # blocks


class Unblock(Struct, frozen=True, forbid_unknown_fields=True):
    """Which block is to go."""

    kind: BlockKind
    value: Annotated[str, Meta(min_length=1, max_length=64)]


decode_block = msgspec.json.Decoder(BlockSpec).decode
decode_unblock = msgspec.json.Decoder(Unblock).decode


class AccessLists:
    """The calls under `access`. No key and no secret passes here: `rushgate channel` shows a new key, once."""

    def __init__(self, guard: Guard, desk: Desk, of_settings: list[str]) -> None:
        """`of_settings`: channels whose keys are settings."""
        books = AccessBooks(desk.store, desk.ledger)
        self._guard = guard
        self._channels = ChannelDesk(books, ())
        self._blocks = BlockDesk(books)
        self._of_settings = of_settings

    def routes(self, base: str) -> list[BaseRoute]:
        """All of them."""
        return [
            self._guard.get(base + "/access", self.show),
            self._guard.post(base + "/access/block", self.block),
            self._guard.post(base + "/access/unblock", self.unblock),
        ]

    async def show(self, request: Request, session: Session) -> dict[str, Any]:
        """Channels and blocks as the ledger has them."""
        channels, blocks = await self._channels.list(), await self._blocks.list()
        return {
            "channels": channels,
            "of_settings": self._of_settings,
            "blocks": blocks[:SHOWN_MAX],
            "blocks_more": max(0, len(blocks) - SHOWN_MAX),
        }

    async def block(self, request: Request, session: Session) -> Any:
        """A buyer, address or network may not order."""
        return await self._blocks.put(decode(decode_block, await body_of(request)))

    async def unblock(self, request: Request, session: Session) -> dict[str, Any]:
        """They may again."""
        asked = decode(decode_unblock, await body_of(request))
        was, in_force = await self._blocks.drop(asked.kind, asked.value)
        return {"was": was, "in_force": in_force}
