"""What became of a rebuild, or would."""

from msgspec import Struct

from core.model import AuditReport


class Units(Struct, frozen=True):
    """A SKU's balance over all shards, in units. Before a rebuild: what the store says."""

    sku: str
    allocation: int
    left: int
    held: int
    sold: int


class Shard(Struct, frozen=True):
    """What was installed on a shard, or would be."""

    shard: int
    base: int  # the greatest number known: the next order has the next one
    orders: int
    gap: int  # numbers up to `base` that nobody has: orders that the store lost
    missing: str  # these as ranges


class Rebuilt(Struct, frozen=True):
    """A rebuild, made or planned."""

    campaign: str
    epoch: int
    before: list[Units]
    after: list[Units]
    shards: list[Shard]
    audit: AuditReport | None = None  # None: it was only planned, or cannot be put in service
    state: str = "recovering"

    @property
    def oversold(self) -> list[Units]:
        """SKUs of which more is promised than there ever was."""
        return [u for u in self.after if u.left < 0]


def sound(report: AuditReport, lost: bool = False) -> bool:
    """Whether the store is as the ledger wants it. A limit that orders of the ledger pass is not the store's affair.

    `lost`: orders that the store has, and that are neither in the ledger nor on their way, may be: what only the store
    has is not to be thrown away with it, the mender brings it into the ledger (workers/mender.py).
    """
    others = [text for text in report.findings if not text.endswith("over the limit")]
    return not (report.oversold or report.phantom or report.duplicated or others or (report.lost and not lost))
