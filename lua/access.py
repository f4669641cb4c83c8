"""The gateways' copy of channels, keys and blocks: one key of the store. The truth is the ledger's.

Whoever changes the ledger publishes the copy; the gateways look twice a second whether its version is another one.
"""

from enum import IntEnum

import msgspec
from msgspec import Struct
from redis.exceptions import RedisError

from core.errors import StoreUnavailable
from lua.connection import Command, Reply, StoreConnection
from lua.keys import access_key
from lua.source import LuaSource

PUBLISH = LuaSource.read("publish_access")


class PublishCode(IntEnum):
    DONE = 0
    NEWER = 1


class ChannelCopy(Struct, frozen=True, array_like=True):
    """A channel. `campaigns`: that it may sell, None = all; `rates`: its own limits by kind."""

    channel: str
    active: bool
    campaigns: list[str] | None
    rates: dict[str, str]


class KeyCopy(Struct, frozen=True, array_like=True):
    """A key that is not revoked. `digest`: SHA-256 of it; `expires_ms` 0 = never."""

    key_id: str
    channel: str
    signing: bool
    digest: bytes
    expires_ms: int


class BlockCopy(Struct, frozen=True, array_like=True):
    """A blocked buyer, address or network. `until_ms` 0 = until it is taken away."""

    kind: str
    value: str
    until_ms: int


class AccessCopy(Struct, frozen=True, array_like=True):
    """All of it as of one version; 0 = nothing was ever changed."""

    version: int
    channels: list[ChannelCopy]
    keys: list[KeyCopy]
    blocks: list[BlockCopy]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(AccessCopy).decode


async def publish(store: StoreConnection, copy: AccessCopy) -> bool:
    """The gateways' copy is this one, or (False) a newer one. Raises: StoreUnavailable."""
    [reply] = await store.run(PUBLISH, [(1, access_key(), copy.version, _encode(copy))])
    code, _ = _told(reply)
    return PublishCode(code) is PublishCode.DONE


async def published_version(store: StoreConnection) -> int | None:
    """The version of the copy; None = the store has none. Raises: StoreUnavailable."""
    ask: list[Command] = [("HGET", access_key(), "version")]
    version = _told((await store.exchange(ask))[0])
    return None if version is None else int(version)


async def published(store: StoreConnection) -> AccessCopy | None:
    """The copy; None = the store has none. Raises: StoreUnavailable, also for one that cannot be read."""
    ask: list[Command] = [("HGET", access_key(), "copy")]
    copy = _told((await store.exchange(ask))[0])
    try:
        return None if copy is None else _decode(copy)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise StoreUnavailable(f"the copy of channels and keys cannot be read: {exc}") from exc


def _told(reply: Reply) -> Reply:
    if isinstance(reply, RedisError):
        raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
    return reply
