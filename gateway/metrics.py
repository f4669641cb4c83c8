"""The metrics of a gateway process: its tally, and what its parts know of themselves when somebody asks."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

from core.metrics import Book, Row
from gateway.catalogue import Catalogue
from gateway.edge import Edge
from gateway.intake import Intake
from gateway.line_room import LiveRoom
from gateway.rates import Limiter
from gateway.soldout import SoldOut
from gateway.tally import Tally
from gateway.watch import StoreWatch

MAX_ROOMS = 200


class Served(Protocol):
    """What uvicorn counts."""

    total_requests: int


class GatewayMetrics:
    """One per process. What is None at first is set once it is there."""

    def __init__(self, intake: Intake, sold_out: SoldOut, catalogue: Catalogue, watch: StoreWatch) -> None:
        self.tally = Tally()
        self.book = Book("gateway")
        self.edge: Edge | None = None
        self.served: Served | None = None
        self.limiter: Limiter | None = None
        self.rooms: Mapping[str, LiveRoom] = {}
        self._intake = intake
        self._sold_out = sold_out
        self._catalogue = catalogue
        self._watch = watch
        intake.tally = self.tally
        for source in (self.tally.rows, self._rows, self._edge, self._limits, self._lines):
            self.book.add(source)

    def _rows(self) -> Sequence[Row]:
        intake = self._intake
        return [
            ("rushgate_queue_orders", (), intake.waiting),
            ("rushgate_queue_room_orders", (), intake.room),
            ("rushgate_in_flight_orders", (), intake.on_the_way),
            ("rushgate_intake_refusing", (), intake.refusal is not None),
            ("rushgate_store_available", (), self._watch.is_there),
            ("rushgate_sold_out_flags", (), self._sold_out.up()),
            ("rushgate_campaigns_known", (), len(self._catalogue.sales)),
        ]

    def _limits(self) -> Iterable[Row]:
        if self.limiter is not None:
            yield "rushgate_rate_checks_total", ("passed",), self.limiter.passed
            yield "rushgate_rate_checks_total", ("limited",), self.limiter.limited
            yield "rushgate_rate_queue_orders", (), self.limiter.waiting

    def _lines(self) -> Iterable[Row]:
        yield "rushgate_room_listeners", (), sum(room.waiting for room in self.rooms.values())
        for campaign, room in islice(self.rooms.items(), MAX_ROOMS):
            if room.standing is not None:
                yield "rushgate_room_joined", (campaign,), room.standing.joined
                yield "rushgate_room_admitted", (campaign,), room.standing.admitted

    def _edge(self) -> Iterable[Row]:
        if self.edge is not None:
            yield "rushgate_connections", (), len(self.edge.connections)
            yield "rushgate_connections_refused_total", (), self.edge.refused
            yield "rushgate_connections_cut_total", (), self.edge.cut
        if self.served is not None:
            yield "rushgate_http_requests_total", (), self.served.total_requests
