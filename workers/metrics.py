"""The metrics of a worker process: what its parts count, told when somebody asks."""

from collections.abc import Iterable

from core.ledger.pool import Pool
from core.metrics import Book, Row
from core.settings import Settings
from lua.connection import StoreConnection
from workers.expiry import ExpiryWorker
from workers.ledger import LedgerWorker
from workers.metrics_deployment import Deployment, destination
from workers.reconcile import ReconcileWorker
from workers.relay import RelayWorker

LOOK_TIMEOUT_S = 2.0  # for the store, when the whole deployment is looked at


class WorkerMetrics:
    """One per process; made in a running event loop. The worker and the pool are the caller's."""

    def __init__(self, settings: Settings, worker: object, ledger: Pool, kind: str, name: str) -> None:
        self.book = Book(kind)
        self._deployment: Deployment | None = None
        if isinstance(worker, LedgerWorker):
            self.book.add(lambda: _of_ledger(worker))
        elif isinstance(worker, ExpiryWorker):
            self.book.add(lambda: _of_expiry(worker))
        elif isinstance(worker, RelayWorker):
            self.book.add(lambda: _of_relay(worker))
        elif isinstance(worker, ReconcileWorker):
            # Level `memory`: nothing is asked of the store but what it says of itself.
            connection = StoreConnection(settings.store_url, "memory", LOOK_TIMEOUT_S, f"{name}-metrics")
            self._deployment = Deployment(connection, ledger, settings.shards)
            self.book.add(lambda: _of_reconcile(worker))
            self.book.add(self._deployment.rows)
        else:
            raise TypeError(f"a {type(worker).__name__} has no metrics")

    def start(self) -> None:
        """What must be looked at is."""
        if self._deployment is not None:
            self._deployment.start()

    async def stop(self) -> None:
        """No task of it runs."""
        if self._deployment is not None:
            await self._deployment.stop()


def _rounds(worker: LedgerWorker | ExpiryWorker | RelayWorker | ReconcileWorker) -> Iterable[Row]:
    yield "rushgate_worker_rounds_total", (), worker.pulse.rounds
    yield "rushgate_worker_last_round_timestamp_seconds", (), worker.pulse.at_s


def _of_ledger(worker: LedgerWorker) -> Iterable[Row]:
    writer = worker.writer
    yield from _rounds(worker)
    yield "rushgate_ledger_orders_total", (), worker.written
    yield "rushgate_ledger_dead_letters_total", (), worker.dead
    yield "rushgate_ledger_claimed_entries_total", (), worker.claimed
    yield "rushgate_ledger_transaction_seconds", (), writer.batch_s
    yield "rushgate_ledger_transaction_orders", (), writer.batch_orders
    yield "rushgate_ledger_batches_total", ("copy",), writer.copied
    yield "rushgate_ledger_batches_total", ("statement",), sum(writer.batch_s.counts) - writer.copied
    yield "rushgate_ledger_copy_refused_total", (), writer.refused


def _of_expiry(worker: ExpiryWorker) -> Iterable[Row]:
    yield from _rounds(worker)
    moved = (("expire", worker.expired), ("receive", worker.received), ("complete", worker.completed))
    for action, count in moved:
        yield "rushgate_expiry_moves_total", (action,), count
    yield "rushgate_expiry_late_seconds", (), worker.late_s


def _of_relay(worker: RelayWorker) -> Iterable[Row]:
    yield from _rounds(worker)
    for (topic, result), count in worker.outbox.told.items():
        yield "rushgate_deliveries_total", (destination(topic), topic, result), count
    for topic, took_s in worker.outbox.took_s.items():
        yield "rushgate_delivery_seconds", (destination(topic), topic), took_s
    for name, partner in (worker.partners.destinations if worker.partners else {}).items():
        yield "rushgate_breaker_open", (name,), partner.breaker.is_open


def _of_reconcile(worker: ReconcileWorker) -> Iterable[Row]:
    yield from _rounds(worker)
    yield from worker.audits.rows()
    for repair, count in worker.repairs.items():
        yield "rushgate_repairs_total", (repair,), count
    yield "rushgate_rebuilds_total", (), worker.recovery.rebuilt
    yield "rushgate_rebuild_lost_orders_total", (), worker.recovery.lost
    yield "rushgate_store_admitted", (), worker.admitted
    yield "rushgate_campaigns_out_of_service", (), len(worker.recovery.damaged)
