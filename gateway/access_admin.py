"""The admin calls for channels, keys and block lists; behind the admin token. The ledger is written, the store told."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.desk.blocks import Block, BlockDesk, BlockSpec
from core.desk.channels import Channel, ChannelChange, ChannelDesk, ChannelSpec, Revocation, Rotation
from core.errors import Fault, Invalid
from gateway.access import Access
from gateway.access_watch import AccessWatch
from gateway.admin import json_response, problem_response
from gateway.body import Gone, decode, read_body
from gateway.problems import fault, problem

BODY_BYTES = 65_536
CHANNELS, BLOCKS = "/v1/admin/channels", "/v1/admin/blocks"

decode_spec = msgspec.json.Decoder(ChannelSpec).decode
decode_change = msgspec.json.Decoder(ChannelChange).decode
decode_rotation = msgspec.json.Decoder(Rotation).decode
decode_revocation = msgspec.json.Decoder(Revocation).decode
decode_block = msgspec.json.Decoder(BlockSpec).decode

Action = Callable[[Request], Awaitable[Any]]


class Channels(msgspec.Struct, frozen=True):
    """All channels that were added."""

    channels: list[Channel]


class Blocks(msgspec.Struct, frozen=True):
    """All blocks in force."""

    blocks: list[Block]


class Unblocked(msgspec.Struct, frozen=True):
    """A block that is not in force. `was`: until this call; `in_force`: the gateways know, or will within a second."""

    kind: str
    value: str
    was: bool
    in_force: bool


class AccessAdmin:
    """The routes under /v1/admin/channels and /v1/admin/blocks."""

    def __init__(
        self, access: Access, channels: ChannelDesk, blocks: BlockDesk, watch: AccessWatch, retry_after_s: int
    ) -> None:
        self._access = access
        self._channels = channels
        self._blocks = blocks
        self._watch = watch
        self._retry_after_s = retry_after_s

    def routes(self) -> list[Route]:
        """All of them, each behind the token."""
        one = CHANNELS + "/{channel}"
        return [
            self._route(CHANNELS, GET=self.list, POST=self.add),
            self._route(one, GET=self.show, PATCH=self.change),
            self._route(one + "/rotate", POST=self.rotate),
            self._route(one + "/revoke", POST=self.revoke),
            self._route(BLOCKS, GET=self.blocks, POST=self.block, DELETE=self.unblock),
        ]

    def _route(self, path: str, **actions: Action) -> Route:
        async def endpoint(request: Request) -> Response:
            authorization = request.headers.get("authorization", "").encode("latin-1")
            if not self._access.is_admin(authorization):
                known = self._access.caller(authorization) is not None
                return problem_response(problem("operators_only" if known else "unauthorized"), self._retry_after_s)
            action = actions.get(request.method) or actions["GET"]  # the router lets HEAD through where there is a GET
            try:
                answer = json_response(await action(request))
                if request.method not in ("GET", "HEAD"):
                    await self._watch.look()  # here it works at once; a key that was made can be tried
            except Fault as exc:
                return problem_response(fault(exc), self._retry_after_s)
            except Gone:
                return Response()  # to nobody
            answer.headers["cache-control"] = "no-store"  # some hold a key
            return answer

        return Route(path, endpoint, methods=list(actions))

    async def list(self, request: Request) -> Channels:
        return Channels(await self._channels.list())

    async def show(self, request: Request) -> Channel:
        return await self._channels.show(request.path_params["channel"])

    async def add(self, request: Request) -> Any:
        return await self._channels.add(decode(decode_spec, await read_body(request.receive, BODY_BYTES)))

    async def change(self, request: Request) -> Channel:
        wanted = decode(decode_change, await read_body(request.receive, BODY_BYTES))
        return await self._channels.set(request.path_params["channel"], wanted)

    async def rotate(self, request: Request) -> Any:
        wanted = decode(decode_rotation, await read_body(request.receive, BODY_BYTES) or b"{}")
        return await self._channels.rotate(request.path_params["channel"], wanted)

    async def revoke(self, request: Request) -> Channel:
        wanted = decode(decode_revocation, await read_body(request.receive, BODY_BYTES) or b"{}")
        return await self._channels.revoke(request.path_params["channel"], wanted.key_id)

    async def blocks(self, request: Request) -> Blocks:
        return Blocks(await self._blocks.list())

    async def block(self, request: Request) -> Block:
        return await self._blocks.put(decode(decode_block, await read_body(request.receive, BODY_BYTES)))

    async def unblock(self, request: Request) -> Unblocked:
        kind, value = request.query_params.get("kind", ""), request.query_params.get("value", "")
        if kind not in ("buyer", "ip"):
            raise Invalid("must be buyer or ip", "kind")
        was, in_force = await self._blocks.drop("buyer" if kind == "buyer" else "ip", value)
        return Unblocked(kind, value, was, in_force)
