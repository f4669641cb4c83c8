"""All metrics: what each is called, its labels, what it says, and which kinds of process have it.

The table in docs/metrics.md is made from this one. Names follow Prometheus' conventions: base units, `_total` for what
only grows. No label is called `process` or `kind`: these two tell the processes apart (ops/metrics_gather.py).
"""

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]

WORKERS = ("ledger", "expiry", "relay", "reconcile")
ALL = ("gateway", *WORKERS, "console")

# Upper bounds of the buckets.
ANSWER_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SHORT_S = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LONG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ORDERS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0)


class Definition(NamedTuple):
    """One metric. `of`: the kinds of process that have it; `bounds`: of a histogram's buckets."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    of: tuple[str, ...]
    bounds: tuple[float, ...] = ()


def _counter(of: tuple[str, ...], name: str, words: str, *labels: str) -> Definition:
    return Definition(f"rushgate_{name}_total", "counter", labels, words, of)


def _gauge(of: tuple[str, ...], name: str, words: str, *labels: str) -> Definition:
    return Definition(f"rushgate_{name}", "gauge", labels, words, of)


def _histogram(of: tuple[str, ...], name: str, words: str, bounds: tuple[float, ...], *labels: str) -> Definition:
    return Definition(f"rushgate_{name}", "histogram", labels, words, of, bounds)


_GATEWAY, _LEDGER, _EXPIRY, _RELAY, _RECONCILE = (("gateway",), ("ledger",), ("expiry",), ("relay",), ("reconcile",))
_TRACED = ("gateway", "ledger", "expiry", "relay")

METRICS: tuple[Definition, ...] = (
    _gauge(ALL, "build_info", "1; the label tells the version of the program.", "version"),
    _histogram(
        ALL, "event_loop_lag_seconds",
        "How much later than it should a timer of the process ran; four times a second.", SHORT_S,
    ),
    _counter(_TRACED, "spans_exported", "Spans that the collector, or the file, has taken."),
    _counter(_TRACED, "spans_dropped", "Spans that found no room in the queue, or that the collector did not take."),
    _counter(
        _GATEWAY, "orders",
        "Requests for an order by their answer: accepted, replayed (the same key again), or the code of the problem. "
        "way: short, long, batch (a line of orders:batch), refused (too many waited: not looked at, channel unknown).",
        "channel", "outcome", "way",
    ),
    _histogram(
        _GATEWAY, "order_seconds",
        "From the moment an order was parsed and queued to the store's answer, written to the client; at most 1 ms too "
        "much. Orders answered from memory, or refused without the store, are not in it.",
        ANSWER_S,
    ),
    _histogram(_GATEWAY, "reserve_orders", "Orders in one call of the store's script reserve.", ORDERS),
    _histogram(
        _GATEWAY, "store_round_trip_seconds",
        "One exchange of orders with the store. At level fsync or replicated with the disk's and the replicas' part.",
        SHORT_S,
    ),
    _histogram(_GATEWAY, "batch_lines", "Lines in one request to orders:batch.", ORDERS),
    _gauge(_GATEWAY, "queue_orders", "Orders that wait for their exchange with the store."),
    _gauge(_GATEWAY, "queue_room_orders", "So many may wait, as fast as the store is now; more are refused."),
    _gauge(_GATEWAY, "in_flight_orders", "Orders on their way to the store and back."),
    _counter(
        _GATEWAY, "rate_checks",
        "Orders, and joins of waiting rooms, whose rate limits were looked at: passed, limited.", "result",
    ),
    _gauge(
        _GATEWAY, "rate_queue_orders",
        "Orders and joins that wait for a look at their rate limits, before any other queue.",
    ),
    _gauge(
        _GATEWAY, "room_joined",
        "Places given in the waiting room of a campaign so far, as this process last saw it. At most 200 campaigns.",
        "campaign",
    ),
    _gauge(_GATEWAY, "room_admitted", "Places of it admitted so far.", "campaign"),
    _gauge(_GATEWAY, "room_listeners", "Buyers who wait on this process for a change of their place."),
    _gauge(_GATEWAY, "intake_refusing", "1 while new orders are refused because too many wait for the ledger."),
    _gauge(_GATEWAY, "store_available", "1 if the store's last answer to this process was one it can use."),
    _gauge(_GATEWAY, "sold_out_flags", "SKUs that are answered sold_out from memory now."),
    _gauge(_GATEWAY, "campaigns_known", "Campaigns that this process has read from the store."),
    _gauge(_GATEWAY, "connections", "Open connections of clients."),
    _counter(_GATEWAY, "connections_refused", "Connections refused because there were too many."),
    _counter(_GATEWAY, "connections_cut", "Connections cut off because their client was too slow."),
    _counter(_GATEWAY, "http_requests", "HTTP requests answered, of all paths."),
    _gauge(
        WORKERS, "worker_last_round_timestamp_seconds",
        "When the worker last went through its work without a fault of store or ledger; 0 = never.",
    ),
    _counter(WORKERS, "worker_rounds", "Rounds of work without a fault of store or ledger."),
    _counter(_LEDGER, "ledger_orders", "Orders written to the ledger by this worker."),
    _histogram(_LEDGER, "ledger_transaction_seconds", "Writing one batch of orders, to its commit.", SHORT_S),
    _histogram(_LEDGER, "ledger_transaction_orders", "Orders in one batch.", ORDERS),
    _counter(_LEDGER, "ledger_batches", "Batches by how they were written: copy, statement.", "how"),
    _counter(_LEDGER, "ledger_copy_refused", "Batches that were not new: COPY refused them, the statement decided."),
    _counter(_LEDGER, "ledger_claimed_entries", "Entries taken over from a worker that was silent."),
    _counter(_LEDGER, "ledger_dead_letters", "Orders set aside, as the ledger cannot take them."),
    _counter(_EXPIRY, "expiry_moves", "Orders moved on by time: expire, receive, complete.", "action"),
    _gauge(_EXPIRY, "expiry_late_seconds", "The longest that an order was moved behind its deadline by this worker."),
    _counter(
        _RELAY, "deliveries",
        "What became of messages: done, later (failed, to be tried again), returned (not tried), dead.",
        "destination", "topic", "result",
    ),
    _histogram(_RELAY, "delivery_seconds", "The attempt that delivered a message.", LONG_S, "destination", "topic"),
    _gauge(_RELAY, "breaker_open", "1 while nothing but probes is sent to a partner that failed.", "destination"),
    _gauge(
        _RECONCILE, "stock_units",
        "Units of each SKU of open and paused campaigns as last audited: left, held, sold. At most 500 SKUs.",
        "campaign", "sku", "part",
    ),
    _gauge(_RECONCILE, "stock_skus_unshown", "SKUs of open and paused campaigns beyond those 500."),
    _gauge(
        _RECONCILE, "audit_drift",
        "What the last audit of a campaign found wrong: oversold (units), lost, phantom, duplicated, over_limit "
        "(orders), unbalanced, unmended (findings). Must be 0. Of open and paused campaigns, and where it is not 0; at "
        "most 200.",
        "campaign", "finding",
    ),
    _counter(_RECONCILE, "audits", "Campaigns audited."),
    _histogram(_RECONCILE, "audit_seconds", "Audit and repairs of one campaign.", LONG_S),
    _counter(_RECONCILE, "repairs", "Orders mended: requeued, released, settled, repeated.", "repair"),
    _gauge(_RECONCILE, "alerts", "Alerts that stand, by what is wrong.", "alert"),
    _counter(_RECONCILE, "rebuilds", "Campaigns that this worker rebuilt from the ledger."),
    _counter(_RECONCILE, "rebuild_lost_orders", "Accepted orders that nobody had any more when it rebuilt them."),
    _gauge(_RECONCILE, "campaigns_out_of_service", "Campaigns that the store lost and that are not rebuilt yet."),
    _gauge(_RECONCILE, "campaigns", "Campaigns by their state.", "state"),
    _gauge(_RECONCILE, "store_admitted", "1 if orders may be taken on the store; 0 = not judged yet, or away."),
    _gauge(_RECONCILE, "intake_orders", "Accepted orders that wait for the ledger."),
    _gauge(_RECONCILE, "intake_entries", "Entries of the intake, of many orders each, that wait for the ledger."),
    _gauge(_RECONCILE, "intake_age_seconds", "How long the oldest of them has waited."),
    _gauge(_RECONCILE, "intake_pending_entries", "Entries that a ledger worker has read and not acknowledged."),
    _gauge(_RECONCILE, "store_memory_bytes", "Memory that the store uses."),
    _gauge(_RECONCILE, "store_memory_limit_bytes", "The store's maxmemory; 0 = none."),
    _counter(
        _RECONCILE, "store_aof_seconds",
        "Time in which the store's one thread wrote and synced its log of changes; absent where it does not tell.",
    ),
    _gauge(_RECONCILE, "outbox_messages", "Messages that wait, by destination.", "destination"),
    _gauge(_RECONCILE, "outbox_age_seconds", "How long the oldest of them has waited.", "destination"),
    _gauge(_RECONCILE, "dead_messages", "Messages that nobody could deliver and that stand.", "destination"),
    _gauge(_RECONCILE, "dead_letters", "Orders set aside that stand."),
)  # fmt: skip

OF_THE_CLIENT = (  # by the Python process collector of prometheus-client, on Linux
    Definition("process_cpu_seconds_total", "counter", (), "CPU time of the process.", ALL),
    Definition("process_resident_memory_bytes", "gauge", (), "Memory that the process has in use.", ALL),
    Definition("process_virtual_memory_bytes", "gauge", (), "Address space of the process.", ALL),
    Definition("process_open_fds", "gauge", (), "Open file descriptors.", ALL),
    Definition("process_max_fds", "gauge", (), "Most file descriptors that it may open.", ALL),
    Definition("process_start_time_seconds", "gauge", (), "When the process was started.", ALL),
)
GATHERED = (  # made by whoever gathers
    Definition(
        "rushgate_process_up", "gauge", (),
        "1 if a process told its metrics within 1 s, 0 if it lives or hangs and did not; only where all are gathered.",
        ("gathered",),
    ),
)  # fmt: skip


def of_kind(kind: str) -> list[Definition]:
    """The metrics that a process of this kind must have, without those of the client library."""
    return [definition for definition in METRICS if kind in definition.of]
