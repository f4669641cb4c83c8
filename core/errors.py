"""Every error that Rushgate raises on purpose. Outcomes of an order are values, never these."""

from typing import ClassVar


class Fault(Exception):
    """Base of all: carries what HTTP answers and whether the same request may be sent again.

    `code` is stable and public; `detail` is for people and holds no secret.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    @property
    def detail(self) -> str:
        return str(self)


class ConfigInvalid(Fault):
    """A setting is unknown or bad; the process stops before it serves anything."""

    code = "config_invalid"


class StoreUnavailable(Fault):
    """No usable answer from the store. What was asked may or may not have happened.

    Asking again with the same request key, move id or version is safe: every script is idempotent by it.
    """

    status = 503
    code = "store_unavailable"
    retryable = True


class StoreNotAsPromised(StoreUnavailable):
    """The store answers, but is not set for the durability that the deployment promises: nothing is served."""

    code = "store_not_as_promised"


class Recovering(StoreUnavailable):
    """The store, or this campaign in it, is being recovered after a loss: nothing is sold until that is over.

    What was accepted before keeps its key: the same request gives the same order again afterwards.
    """

    code = "recovering"


class LedgerUnavailable(Fault):
    """No usable answer from the ledger in time. Intake does not need it and goes on."""

    status = 503
    code = "ledger_unavailable"
    retryable = True


class SchemaMismatch(Fault):
    """The ledger's schema is newer than this program, or not migrated yet."""

    code = "schema_mismatch"


class Overloaded(Fault):
    """A queue stands at its bound: the newest request is refused, nothing accepted is dropped.

    `retry_after_s`: when it is worth to come again, seconds; 0 = as after any 503.
    """

    status = 503
    code = "overloaded"
    retryable = True

    def __init__(self, why: str, retry_after_s: int = 0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class RateLimited(Fault):
    """More requests than a rate limit lets through: this one was not looked at. The same request may be sent again.

    `limit`: buyer, ip, device or channel. `retry_after_s`: when it is worth to come again, seconds. `headers`: what
    HTTP says of the limits beside it.
    """

    status = 429
    code = "rate_limited"
    retryable = True

    def __init__(self, why: str, limit: str, retry_after_s: int, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(why)
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.headers = headers


class CampaignUnknown(Fault):
    """No campaign of that name was ever defined."""

    status = 404
    code = "unknown_campaign"


class CampaignLost(Fault):
    """The ledger says that the campaign was installed; the store does not hold it, or holds another epoch."""

    status = 503
    code = "campaign_lost"
    retryable = True


class Refused(Fault):
    """The request is understood and may not be carried out in the present state."""

    status = 409
    code = "conflict"


class Invalid(Fault):
    """The request itself is bad; `field` says where (a path such as `items[0].quantity`), the message says why."""

    status = 422
    code = "invalid"

    def __init__(self, why: str, field: str = "") -> None:
        super().__init__(why)
        self.field = field


class OrderUnknown(Fault):
    """Neither ledger nor store has the order, or it is another channel's."""

    status = 404
    code = "unknown_order"


class Conflicting(Invalid):
    """The request contradicts what is on record."""

    status = 409
    code = "contradicts"


class NotAllowed(Fault):
    """The flow has no such move from the present state for this actor; `allowed` is what it has.

    `noun`: what is in that state, with its article. `hint`: how to go about it instead; then the action is allowed, by
    another call, and the detail is that alone.
    """

    status = 409
    code = "not_allowed"

    def __init__(self, state: str, action: str, allowed: list[str], hint: str = "", noun: str = "an order") -> None:
        now = ", ".join(allowed) or "nothing"
        super().__init__(hint or f"`{action}` is not possible for {noun} that is {state}; allowed now: {now}")
        self.state = state
        self.allowed = allowed
