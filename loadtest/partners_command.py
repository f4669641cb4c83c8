"""The command line of the partners' server, for `rushgate partners`."""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import uvloop

from loadtest.partners import BACKLOG, serve_partners
from loadtest.partners_options import EVERY, PARTNERS, STEP_MS, Buyers, Conduct, PartnersOptions

SECRETS_ENV, CHANNEL_KEYS_ENV, CHANNEL_KEY_ENV = (
    "RUSHGATE_PARTNER_SECRETS",
    "RUSHGATE_CHANNEL_KEYS",
    "RUSHGATE_CHANNEL_KEY",
)
EXIT_OK, EXIT_NOT_RUN = 0, 2

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; secrets come from the environment only."""
    buyers, conduct = Buyers(), Conduct()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8090, help="port to listen on, 0: a free one (default: %(default)s)"
    )
    parser.add_argument("--fd", type=int, help="a listening socket that was inherited, instead of host and port")
    parser.add_argument("--gateway", default="http://127.0.0.1:8080", help="where callbacks go (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same decisions (default: %(default)s)")
    for name in ("pay", "cancel", "ignore", "pay_late"):
        _add(parser, name, getattr(buyers, name), "share of the buyers, 0 to 1; the four add up to 1")
    _add(parser, "think_ms", buyers.think_ms, "mean time until a buyer pays or cancels")
    _add(parser, "late_ms", buyers.late_ms, "how long after pay_by a late payer pays")
    _add(parser, "step_ms", STEP_MS, "between a message or a report and the next report of a partner")
    _add(parser, "latency_ms", conduct.latency_ms, "of every partner, mean")
    _add(parser, "jitter_ms", conduct.jitter_ms, "of every partner, either way")
    _add(parser, "failure", conduct.failure, "share of the messages answered 500, undone, 0 to 1")
    _add(parser, "lost_answer", conduct.lost_answer, "share of the messages done and not answered, 0 to 1")
    _add(parser, "duplicate", conduct.duplicate, "share of the callbacks sent twice, 0 to 1")


def _add(parser: argparse.ArgumentParser, name: str, default: float, what: str) -> None:
    flag = "--" + name.replace("_", "-")
    parser.add_argument(flag, type=float, default=default, metavar="N", help=f"{what} (default: %(default)s)")


def run_from_args(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Returns 0, or 2 when it could not begin."""
    try:
        options = options_from(args, os.environ)
        sock = listen(args.host, args.port) if args.fd is None else inherited(args.fd)
    except (ValueError, OSError) as exc:
        print(f"partners: {exc}", file=sys.stderr)
        return EXIT_NOT_RUN
    host, port = sock.getsockname()[:2]
    print(f"partners: http://{host}:{port} ({', '.join(PARTNERS)}); state: http://{host}:{port}/control", flush=True)
    try:
        uvloop.run(_until_signal(options, sock))
    except ValueError as exc:
        print(f"partners: {exc}", file=sys.stderr)
        return EXIT_NOT_RUN
    finally:
        sock.close()
    return EXIT_OK


def options_from(args: argparse.Namespace, environ: Mapping[str, str]) -> PartnersOptions:
    """The options of flags and environment. Raises ValueError, which never shows a secret.

    `RUSHGATE_PARTNER_SECRETS` is `whsec_…` for all partners, or `payment=whsec_…,billing=whsec_…`; one partner may
    stand there several times, its first secret signs. `RUSHGATE_CHANNEL_KEYS` is `app=KEY,web=KEY`, or one
    `RUSHGATE_CHANNEL_KEY`.
    """
    secrets: dict[str, list[str]] = {}
    for text in filter(None, (part.strip() for part in environ.get(SECRETS_ENV, "").split(","))):
        # Base64 may hold an equals sign itself.
        partner, secret = (
            (EVERY, text) if text.startswith("whsec_") else text.split("=", 1) if "=" in text else ("", "")
        )
        if not secret:
            raise ValueError(f"{SECRETS_ENV}: expected whsec_… or partner=whsec_…, separated by commas")
        secrets.setdefault(partner, []).append(secret)
    if not secrets:
        raise ValueError(f"{SECRETS_ENV} is not set: the secrets shared with the gateway, whsec_…")
    keys: dict[str, str] = {}
    for text in filter(None, (part.strip() for part in environ.get(CHANNEL_KEYS_ENV, "").split(","))):
        name, _, key = text.partition("=")
        keys.setdefault(name.partition(".")[0], key)
    if not keys and environ.get(CHANNEL_KEY_ENV):
        keys[""] = environ[CHANNEL_KEY_ENV]
    if not keys:
        raise ValueError(f"{CHANNEL_KEYS_ENV} or {CHANNEL_KEY_ENV} must be set: buyers cancel through a channel")
    conduct = _checked(args, Conduct, ("latency_ms", "jitter_ms", "failure", "lost_answer", "duplicate"))
    return PartnersOptions(
        gateway_url=args.gateway,
        channel_keys=keys,
        secrets=secrets,
        seed=args.seed,
        step_ms=args.step_ms,
        conduct=dict.fromkeys(PARTNERS, conduct),
        buyers=_checked(args, Buyers, ("pay", "cancel", "ignore", "pay_late", "think_ms", "late_ms")),
    )


def _checked(args: argparse.Namespace, kind: type[T], names: tuple[str, ...]) -> T:
    return msgspec.convert({name: getattr(args, name) for name in names}, kind)


def listen(host: str, port: int) -> socket.socket:
    """A bound, listening socket. Raises OSError if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as exc:
        sock.close()
        raise OSError(f"port {port} on {host} cannot be used ({exc})") from exc
    sock.setblocking(False)
    return sock


def inherited(fd: int) -> socket.socket:
    """The listening socket that the parent passed on. Raises OSError if it is none."""
    try:
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except (OSError, ValueError, OverflowError) as exc:
        raise OSError(f"--fd {fd}: is no socket ({exc})") from exc
    if not listening:
        sock.close()
        raise OSError(f"--fd {fd}: the socket does not listen")
    sock.setblocking(False)
    return sock


async def _until_signal(options: PartnersOptions, sock: socket.socket) -> None:
    serving = asyncio.ensure_future(serve_partners(options, sock))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
