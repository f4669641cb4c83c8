"""The clock of a gateway that is hours off."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from datetime import datetime

from tests.faults.nemesis.faults import Scene, Skipped, fault, mono_s
from tests.faults.nemesis.faults_store import NO_FAKETIME, faked
from tests.faults.nemesis.stack import answer

UP_S = 15.0
HOURS_OFF = 1.9


@fault("processes", missing=NO_FAKETIME)
async def gateway_clock(scene: Scene) -> AsyncIterator[None]:
    """All gateways are killed, come back with clocks that are hours off, and later with the right ones. Signatures that
    they take for old ones they refuse meanwhile; orders they take as ever."""
    stack = scene.stack
    parts = stack.of("gateway")
    by = scene.draw.choice(("+2h", "+25h", "-2h"))
    scene.load.also_expected.add("signature_invalid")
    for part in parts:
        await part.end(signal.SIGKILL)
        part.start(faked(by))
    is_off = True
    try:
        for port in stack.gateway_ports:
            is_off = is_off and await _is_off(port)
        yield
    finally:
        for part in parts:
            await part.end(signal.SIGKILL)
            part.start()
    if not is_off:
        raise Skipped(f"a gateway with another clock was not up after {UP_S} s")


async def _is_off(port: int) -> bool:
    """Whether the gateway came up, and says another time than ours."""
    until_s = mono_s() + UP_S
    while mono_s() < until_s:
        status, body = await asyncio.to_thread(answer, port, "/livez")
        if status == 200:
            hours = abs(datetime.fromisoformat(json.loads(body)["now"]).timestamp() - time.time()) / 3_600
            assert hours > HOURS_OFF, f"the gateway's clock is only {hours:.1f} h off"
            return True
        await asyncio.sleep(0.05)
    return False
