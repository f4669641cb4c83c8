"""Faults of the network between any two parts: cut, slow, replies lost, half open."""

import contextlib
from collections.abc import AsyncIterator

from tests.faults.nemesis.faults import Scene, Skipped, fault
from tests.faults.nemesis.proxy import Link, Trouble


def _drawn(scene: Scene) -> Link:
    return scene.stack.links[scene.draw.choice(sorted(scene.stack.links))]


@contextlib.asynccontextmanager
async def _troubled(link: Link, trouble: Trouble, delay_s: float = 0.0) -> AsyncIterator[None]:
    before = link.harmed
    link.set(trouble, delay_s)
    try:
        yield
    finally:
        link.set("none")
    if link.harmed == before:
        raise Skipped(f"nothing was on its way on {link.name}")


@fault("network")
async def network_cut(scene: Scene) -> AsyncIterator[None]:
    """Connections between two parts are reset, and new ones too."""
    async with _troubled(_drawn(scene), "cut"):
        yield


@fault("network")
async def network_delay(scene: Scene) -> AsyncIterator[None]:
    """Everything between two parts takes longer, each way."""
    async with _troubled(_drawn(scene), "delay", scene.draw.choice((0.02, 0.2, 0.7))):
        yield


@fault("network")
async def store_replies_lost(scene: Scene) -> AsyncIterator[None]:
    """The gateways' requests reach the store and are carried out, its replies are lost."""
    async with _troubled(scene.stack.links["gateway-store"], "replies_lost"):
        yield


@fault("network")
async def network_replies_lost(scene: Scene) -> AsyncIterator[None]:
    """Requests pass between two parts, replies are lost."""
    async with _troubled(_drawn(scene), "replies_lost"):
        yield


@fault("network")
async def network_requests_lost(scene: Scene) -> AsyncIterator[None]:
    """Requests are lost between two parts; replies to earlier ones still pass."""
    async with _troubled(_drawn(scene), "requests_lost"):
        yield


@fault("network")
async def callbacks_lost(scene: Scene) -> AsyncIterator[None]:
    """The partners' callbacks reach the gateway and are carried out, its answers are lost."""
    async with _troubled(scene.stack.links["partners-gateway"], "replies_lost"):
        yield


@fault("network")
async def network_half_open(scene: Scene) -> AsyncIterator[None]:
    """Connections between two parts stay open, and nothing passes; the old ones stay dead for ever."""
    async with _troubled(_drawn(scene), "half_open"):
        yield


@fault("network")
async def gateway_cut_off(scene: Scene) -> AsyncIterator[None]:
    """The gateways reach neither store nor ledger."""
    links = [scene.stack.links[name] for name in ("gateway-store", "gateway-ledger")]
    for link in links:
        link.set("half_open")
    try:
        yield
    finally:
        for link in links:
            link.set("none")
