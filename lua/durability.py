"""The durability levels: what a store must be set to for each, and how many replicas must confirm what it was told."""

from typing import Literal, NamedTuple

from redis import exceptions as redis_errors

from core.errors import StoreNotAsPromised, StoreUnavailable
from core.settings import Settings
from lua.source import LuaSource

Durability = Literal["memory", "fsync", "replicated"]

_ON_DISK = {
    "maxmemory-policy": "noeviction",
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
}
# What the store must say of itself, by level. Source: facts.md, "Durability of the store".
PROMISES: dict[Durability, dict[str, str]] = {
    "memory": {"maxmemory-policy": "noeviction"},
    "fsync": _ON_DISK,
    "replicated": _ON_DISK,
}

# A connection that wrote nothing is told by WAIT that all is confirmed: the store asks for its own last write. So
# something is always written just before (measured on Valkey 9.1: after a read WAIT says 1 of a replica that stands
# still; after this, 0). A script, as a plain SET is refused by a store that is full.
TOUCH = LuaSource.read("touch")


class Level(NamedTuple):
    """A durability level with its numbers. `replicas` that must confirm within `wait_ms`; 0 for the other levels."""

    durability: Durability
    replicas: int = 0
    wait_ms: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "Level":
        """The level of a deployment."""
        if settings.durability != "replicated":
            return cls(settings.durability)
        return cls("replicated", settings.replicas, settings.replica_wait_ms)


class Unconfirmed(StoreUnavailable):
    """The store has carried it out, and too few replicas said in time that they have it too.

    A failover now may lose it, so it is not accepted. Asking again with the same key is safe, and is answered when the
    replicas have it. The connection is of use.
    """


def broken_promises(found: dict[str, str], durability: Durability) -> list[str]:
    """What is not set as the level wants it, as sentences for people; empty = all is well."""
    return [
        f"{name} is {found.get(name, 'unknown')!r}, durability {durability!r} needs {wanted!r}"
        for name, wanted in PROMISES[durability].items()
        if found.get(name) != wanted
    ]


def questions(level: Level) -> list[tuple[str, ...]]:
    """The commands whose replies `judge` wants."""
    return [("CONFIG", "GET", *sorted(PROMISES[level.durability])), ("ROLE",)]


def judge(level: Level, settings: object, role: object) -> StoreUnavailable | None:
    """What keeps the store that gave these two replies from serving the level; None = nothing does."""
    for reply in (settings, role):
        if isinstance(reply, redis_errors.RedisError):
            return StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
    assert isinstance(settings, list)  # noqa: S101 - what hiredis makes of both replies
    assert isinstance(role, list)  # noqa: S101
    if role[0] != b"master":
        return StoreUnavailable(f"the store is a {role[0].decode()}, not a primary")
    texts = [t.decode() for t in settings]
    problems = broken_promises(dict(zip(texts[::2], texts[1::2], strict=True)), level.durability)
    connected = len(role[2])  # those that have all and follow; not yet those that still load
    if connected < level.replicas:
        problems.append(f"{connected} replicas are connected, durability 'replicated' needs {level.replicas}")
    return StoreNotAsPromised("; ".join(problems)) if problems else None
