"""What a run of locust may be told, and its secrets: these come from the environment, never from a command line."""

import os
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadtest.locust_shapes import SHAPES
from loadtest.partners_signing import PartnerSigner

CHANNEL_KEY, ADMIN_TOKEN, PAYMENT_SECRETS = "RUSHGATE_CHANNEL_KEY", "RUSHGATE_ADMIN_TOKEN", "RUSHGATE_PAYMENT_SECRETS"
OPERATIONS_MAX = 500_000  # of one process: a history that is judged in memory


class Secrets(msgspec.Struct, frozen=True):
    """Empty: not given. Without the admin token the server's audit is not read, without the payment secret nobody
    pays."""

    channel_key: str
    admin_token: str = ""
    payment_secret: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Secrets":
        """Raises ValueError: there is no channel key, or the payment secret is none."""
        key = env.get(CHANNEL_KEY, "")
        if not key:
            raise ValueError(f"set {CHANNEL_KEY}: `rushgate up` prints one as channel_key")
        payment = env.get(PAYMENT_SECRETS, "").partition(",")[0]
        if payment:
            PartnerSigner([payment])
        return cls(key, env.get(ADMIN_TOKEN, ""), payment)


class Plan(msgspec.Struct, frozen=True):
    """What all processes of a run must agree on; the master makes it. `t0_wall_ms`: when everybody clicks."""

    run: str
    campaign: str
    channel: str
    t0_wall_ms: int
    folder: str  # of the histories, on the master's machine
    skus: tuple[str, ...]
    limit: int  # units that one buyer may have, 0 = any number
    pay: float
    cancel: float
    come_back: int
    pause_s: float
    batch_lines: int
    operations_max: int


def add_arguments(parser: ArgumentParser) -> None:
    """The flags, beside locust's own."""
    part = parser.add_argument_group("Rushgate", "secrets: " + ", ".join((CHANNEL_KEY, ADMIN_TOKEN, PAYMENT_SECRETS)))
    add = part.add_argument
    add("--campaign", default="", help="the campaign to buy from; the orders are real")
    add("--channel", default="app", help="the channel that the key is of (default: %(default)s)")
    add(
        "--shape", choices=sorted(SHAPES), default="steady", help="how many users there are when (default: %(default)s)"
    )
    add("--buyers", type=int, default=18, help="weight of buyers (default: %(default)s)")
    add("--bots", type=int, default=1, help="weight of bots (default: %(default)s)")
    add("--channels", type=int, default=1, help="weight of channels that send batches (default: %(default)s)")
    add("--pay", type=float, default=0.6, help="share of the orders that are paid (default: %(default)s)")
    add("--cancel", type=float, default=0.1, help="share of the orders that are cancelled (default: %(default)s)")
    add("--come-back", type=int, default=2, help="how often a buyer tries again after a refusal (default: %(default)s)")
    add("--pause", type=float, default=1.0, help="seconds until a user is the next buyer (default: %(default)s)")
    add("--batch-lines", type=int, default=50, help="orders in a batch, 1 to 1000 (default: %(default)s)")
    add("--t0-in", type=float, default=0.0, help="T0 is so many seconds after the start, if the sale is open by then")
    add("--history", default="locust-history", help="folder of the recorded histories (default: %(default)s)")
    add("--operations-max", type=int, default=OPERATIONS_MAX,
        help="of one process; its users go home then (default: %(default)s)")  # fmt: skip
    add("--audit-wait", type=float, default=60.0,
        help="seconds until the last order must be in the ledger (default: %(default)s)")  # fmt: skip


def check(options: Any) -> None:
    """Raises ValueError, with the flag, for what cannot be run."""
    if not options.campaign:
        raise ValueError("--campaign: which one to buy from?")
    if not options.host:
        raise ValueError("--host: where is the gateway? e.g. --host http://127.0.0.1:8080")
    for flag, value, low, high in (
        ("--buyers", options.buyers, 0, 1_000),
        ("--bots", options.bots, 0, 1_000),
        ("--channels", options.channels, 0, 1_000),
        ("--pay", options.pay, 0, 1),
        ("--cancel", options.cancel, 0, 1),
        ("--come-back", options.come_back, 0, 100),
        ("--pause", options.pause, 0, 3_600),
        ("--batch-lines", options.batch_lines, 1, 1_000),
        ("--t0-in", options.t0_in, 0, 86_400),
        ("--operations-max", options.operations_max, 1, 10_000_000),
        ("--audit-wait", options.audit_wait, 0, 3_600),
    ):
        if not low <= value <= high:
            raise ValueError(f"{flag}: {value:g} is not between {low:,} and {high:,}")
    if options.buyers + options.bots + options.channels == 0:
        raise ValueError("--buyers, --bots, --channels: all weights are 0")
    if options.pay + options.cancel > 1:
        raise ValueError("--pay and --cancel are shares of the same orders: together at most 1")
    if options.shape not in ("steady", "spike") and not options.run_time:
        raise ValueError(f"--shape {options.shape}: needs --run-time, e.g. --run-time 10m")
    folder = Path(options.history)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--history: {folder} is a file")
