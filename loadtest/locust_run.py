"""One process of a run: the plan that it shares with the others, what it records, and the names that it gives out."""

import secrets
import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from loadtest.history import Items, Recorder, body_hash
from loadtest.history_gather import MACHINE, SUFFIX
from loadtest.locust_answers import Told
from loadtest.locust_options import Plan, Secrets
from loadtest.locust_shapes import warm_up_s
from loadtest.partners_signing import PartnerSigner
from loadtest.plan import client_ip
from loadtest.server_facts import Audit, Sale, Server, ServerSilent

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine() -> str:
    """Whose monotonic clock this process has; empty: nobody can say."""
    try:
        return f"{socket.gethostname()} {BOOT_ID.read_text().strip()}"
    except OSError:
        return ""


def marker(folder: Path, run: str) -> Path:
    """The file by which a worker knows that it shares the folder with the master."""
    return folder / f".{run}.here"


def make_plan(options: Any, secret: Secrets, processes: int) -> tuple[Plan, Sale, Audit | None]:
    """The plan of a run, the campaign, and the server's audit before it (None without an admin token).

    Raises: ServerSilent; OSError where the folder cannot be made.
    """
    server = Server(options.host, secret.channel_key)
    try:
        sale = server.campaign(options.campaign)
    finally:
        server.close()
    if not sale.skus:
        raise ServerSilent(f"campaign {options.campaign} sells nothing")
    audit = None
    if secret.admin_token:
        admin = Server(options.host, secret.admin_token)
        try:
            audit = admin.audit(options.campaign)
        finally:
            admin.close()
    run = secrets.token_hex(4)
    folder = Path(options.history).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    marker(folder, run).touch()
    opens_in_s = max(0.0, (sale.opens_at - sale.now).total_seconds())
    first_s = max(opens_in_s, options.t0_in, warm_up_s(options.shape, options.num_users or 1, processes))
    limits = [n for name, n in sale.limits.items() if n is not None and name in ("buyer", "buyer_sku", "ip", "device")]
    plan = Plan(
        run, options.campaign, options.channel, int((time.time() + first_s) * 1000), str(folder),
        tuple(sku.sku for sku in sale.skus), min(limits, default=0), options.pay, options.cancel, options.come_back,
        options.pause, options.batch_lines, options.operations_max,
    )  # fmt: skip
    return plan, sale, audit


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """An order that somebody wants, to be sent once or often."""

    key: str
    buyer: str
    items: Items
    ip: str
    device: str

    def fields(self) -> dict[str, Any]:
        """The body."""
        lines = [{"sku": sku, "quantity": units} for sku, units in self.items]
        return {"buyer_id": self.buyer, "items": lines, "client_ip": self.ip, "device_id": self.device}


class Run:
    """What the users of one process share. After `close` nothing is recorded, and nothing must be sent any more."""

    def __init__(self, plan: Plan, secret: Secrets, process: str, folder: Path) -> None:
        """Starts the history `<folder>/<run>-<process>.jsonl`. Raises OSError."""
        self.plan = plan
        self.secret = secret
        self.signer = PartnerSigner([secret.payment_secret]) if secret.payment_secret else None
        self.file = folder / f"{plan.run}-{process}{SUFFIX}"
        self.closed = False
        self._recorder = Recorder(self.file, plan.campaign, {MACHINE: machine(), "run": plan.run, "process": process})
        self._prefix = f"{plan.run}-{process}"
        self._names = self._operations = 0

    @property
    def full(self) -> bool:
        """So much is recorded that the users go home."""
        return self._operations >= self.plan.operations_max

    def until_t0_s(self) -> float:
        """Seconds to the click; below 0: it is past."""
        return self.plan.t0_wall_ms / 1000 - time.time()

    def name(self) -> tuple[str, int]:
        """A name that nobody had, and its number."""
        self._names += 1
        return f"{self._prefix}-{self._names}", self._names

    def want(self, items: Items, like: Wanted | None = None) -> Wanted:
        """A new order, of a new buyer or of the same one as `like`."""
        name, number = self.name()
        if like is not None:
            return Wanted(name, like.buyer, items, like.ip, like.device)
        return Wanted(name, f"{name}-b", items, client_ip(self._prefix, number), f"{name}-d")

    def ask(self, wanted: Wanted, body: bytes) -> int:
        """The order is about to be sent: the number of the operation. 0: the run is over, it must not be sent."""
        if self.closed:
            return 0
        self._operations += 1
        return self._recorder.order(
            self.plan.channel, wanted.key, body_hash(body), wanted.buyer, wanted.items, wanted.ip, wanted.device
        )

    def act(self, op: str, order_id: str) -> int:
        """A cancel or a payment is about to be sent; as `ask`."""
        if self.closed:
            return 0
        self._operations += 1
        return self._recorder.act(op, order_id)

    def told(self, n: int, told: Told) -> None:
        """What came of operation `n`. Too late for the history, it is one without an answer."""
        if self.closed:
            return
        if told.result == "ok":
            self._recorder.ok(n, told.status, told.order_id, told.replayed)
        elif told.result == "fail":
            self._recorder.fail(n, told.status, told.code, told.sku)
        else:
            self._recorder.unknown(n, told.status, told.code)

    def close(self) -> None:
        """The history is on the disk, whole."""
        if not self.closed:
            self.closed = True
            self._recorder.close()
