"""The processes on the page: the tuning advice, and more or fewer of a kind where `rushgate up` runs."""

import asyncio
import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.routing import BaseRoute

from core.errors import Fault, Invalid, Refused
from core.settings import Settings
from gateway.body import decode
from lua.connection import StoreConnection
from ops.console.guard import Guard, body_of
from ops.console.sessions import Session
from ops.control import LEAST, MOST, call
from ops.control import Request as Asked
from ops.tune_command import as_json
from ops.tune_measure import LEAST_RATE, assumptions_of, watch
from ops.tune_model import KINDS, Target, advise

LOOK_S = 3.0  # so long the rates are looked at for an advice
CLEAR_IN_S = 60.0
MOST_ASKED = 1e9


class Scale(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a scaling: so many processes of the kind shall run."""

    kind: Annotated[str, Meta(max_length=32)]
    count: Annotated[int, Meta(ge=0, le=MOST)]


decode_scale = msgspec.json.Decoder(Scale).decode


class Workers:
    """The calls under `workers`."""

    def __init__(self, guard: Guard, settings: Settings, store: StoreConnection) -> None:
        """`store`: a connection that nobody else uses."""
        self._guard = guard
        self._store = store
        self._tuning = asyncio.Lock()
        self._settings = settings
        self._folder = Path(settings.data_dir)

    def routes(self, base: str) -> list[BaseRoute]:
        """All of them."""
        return [
            self._guard.get(base + "/workers", self.show),
            self._guard.post(base + "/workers/scale", self.scale),
            self._guard.get(base + "/tune", self.tune),
        ]

    async def show(self, request: Request, session: Session) -> dict[str, Any]:
        """What can be scaled here, and why nothing can where no stack runs on this machine."""
        try:
            children = await call(self._folder, Asked(do="children"))
        except Fault as exc:
            return {"children": [], "why": exc.detail, "least": LEAST, "most": MOST}
        return {"children": children, "why": "", "least": LEAST, "most": MOST}

    async def tune(self, request: Request, session: Session) -> dict[str, Any]:
        """What `rushgate tune` says of a rate (none: what arrives now) and a spike, from a short look at the rates."""
        rate, spike, clear_in = (_number(request, name) for name in ("rate", "spike", "clear_in"))
        if self._tuning.locked():
            raise Refused("another page measures just now: again in a moment")
        async with self._tuning:
            found = assumptions_of(await watch(self._store, self._settings, LOOK_S), self._settings)
        if rate is None:
            rate = round(found.arrivals, 1) if found.arrivals >= LEAST_RATE else None
        if rate is None:
            raise Invalid("nothing arrives now, so name a rate", "rate")
        advice = advise(found.assumptions, Target(rate, spike or 0.0, clear_in or CLEAR_IN_S))
        told = as_json(advice, found.assumptions, found.origins, None, found.notes)
        return told | {"running": {kind: found.assumptions.stage(kind).now for kind in KINDS}}

    async def scale(self, request: Request, session: Session) -> dict[str, Any]:
        """So many run, once those that are too many have ended."""
        asked = decode(decode_scale, await body_of(request))
        wanted = Asked(do="scale", kinds={asked.kind: asked.count})
        children = await call(self._folder, wanted, stop_s=self._settings.grace_s)
        return {"children": children, "why": "", "least": LEAST, "most": MOST}


def _number(request: Request, name: str) -> float | None:
    """A number of the query, None if it is left out. Raises Invalid."""
    text = request.query_params.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as exc:
        raise Invalid("must be a number", name) from exc
    if not (math.isfinite(value) and 0 < value <= MOST_ASKED):
        raise Invalid(f"must be above 0 and at most {MOST_ASKED:,.0f}", name)
    return value
