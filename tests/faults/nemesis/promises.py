"""Which faults put which promise of docs/guarantees.md to the test, and what the judge would find if it did not hold.

G10 (an older definition) and G21 (prices of parts) are not here: nobody changes a campaign or asks for a part of the
money in a round; their own tests stand for them.
"""

from typing import NamedTuple

from loadtest.history_check_loss import LOSSES
from tests.faults.nemesis.faults import FAULTS
from tests.faults.nemesis.faults_loss import REPLICATED


class Promise(NamedTuple):
    """`classes`: faults that attack it, () = all; `order_types` likewise; `invariants`: what would be violated."""

    invariants: tuple[int, ...]
    classes: tuple[str, ...] = ()
    order_types: tuple[str, ...] = ()


def on(*touched: str) -> tuple[str, ...]:
    """The faults of these parts of the stack."""
    return tuple(name for name, fault in FAULTS.items() if set(touched) & set(fault.touches))


def promises() -> dict[str, Promise]:
    """By their ids; call it when all faults are known."""
    return {
        "G1": Promise((1,)),
        "G2": Promise((4,)),
        "G3": Promise((2, 3), on("store")),
        "G4": Promise((2, 3)),
        "G5": Promise((5,)),
        "G6": Promise((6,)),
        "G7": Promise((1, 5)),
        "G8": Promise((5,), on("store", "ledger", "network", "processes")),
        "G9": Promise((1, 5), (*sorted(LOSSES | REPLICATED), "store_restart", "store_kill")),
        "G11": Promise((7,)),
        "G12": Promise((7,), on("store", "network")),
        "G13": Promise((2, 12), on("ledger")),
        "G14": Promise((2, 11), on("store", "network", "clients")),
        "G15": Promise((2,), ("gateway_restart",)),
        "G16": Promise((5, 9)),
        "G17": Promise((8, 9)),
        "G18": Promise((5, 9)),
        "G19": Promise((9, 10)),
        "G20": Promise((5, 9, 12), (), ("reserve_at_payment",)),
        "G22": Promise((2, 5, 12), on("store", "ledger", "processes")),
        "G23": Promise((2,), tuple(sorted(REPLICATED))),
        "G24": Promise((1, 2, 5), tuple(sorted(LOSSES | REPLICATED))),
    }
