"""What faults cannot do, by the class names that a history gives them. A name that is not here can do anything."""

from loadtest.history import Fault, Healed, Mending

# They touch neither the store, nor a gateway, nor the network between them: no transfer of units is cut short.
APART = frozenset({
    "callbacks_contradictory", "callbacks_early", "callbacks_late", "callbacks_lost", "callbacks_twice",
    "client_disconnect", "expiry_kill", "expiry_zombie", "intake_entry_twice", "intake_poison", "ledger_cancel",
    "ledger_connections", "ledger_disk_full", "ledger_kill", "ledger_lock", "ledger_restart", "ledger_slow_fsync",
    "ledger_terminate", "ledger_worker_kill", "ledger_worker_kill_all", "ledger_worker_zombie", "partners_away",
    "partners_bad", "reconcile_kill", "reconcile_zombie", "relay_kill", "relay_zombie", "worker_clock",
    "worker_stop_long",
})  # fmt: skip
# A failover at level `replicated` is none of them: it may cost nothing.
LOSSES = frozenset({"store_emptied", "store_flushed", "store_older_file", "store_older_undrained", "store_cut_file"})
# Every gateway lives through them, and tells the store that comes back what it knows.
HEARD = APART | LOSSES | {"store_kill", "store_kill_rewrite", "store_restart"}


def beyond(faults: list[Fault | Mending | Healed], harmless: frozenset[str]) -> list[Fault | Mending | Healed]:
    """The events of all other classes."""
    return [event for event in faults if event.name not in harmless]
