"""The partners that a stack plays to itself, for `rushgate up --partners` and the demonstration: one more process."""

import os
import socket
import sys
from collections.abc import Mapping
from typing import NamedTuple

from core.errors import ConfigInvalid
from core.settings import Settings
from loadtest.partners_command import CHANNEL_KEYS_ENV, SECRETS_ENV, listen

STEP_MS = 1_000  # between two reports of a warehouse: enough for payments to be told before parcels, on a small machine
HOST = "127.0.0.1"  # they ask for no password to change their conduct


class Played(NamedTuple):
    """Partners that are to be played: their address is known before they, or anybody who calls them, have started."""

    sock: socket.socket  # bound and listening
    url: str
    secrets: tuple[str, ...]  # of messages to them, and of what they report
    payment_secrets: tuple[str, ...]  # of what the payment centre reports
    channel_keys: Mapping[str, str]

    def argv(self, gateway: str) -> list[str]:
        """Their command line; `gateway`: the URL that they call back."""
        fd = str(self.sock.fileno())
        program = [sys.executable, "-m", "ops.cli", "partners"]
        return [*program, "--fd", fd, "--gateway", gateway, "--step-ms", str(STEP_MS)]

    def env(self) -> dict[str, str]:
        """Their whole environment. Of the payment centre's secrets the first signs; all verify, as ours signs by one
        secret for all partners."""
        payment = (*self.payment_secrets, *self.secrets)
        given = {
            SECRETS_ENV: ",".join([*self.secrets, *(f"payment={secret}" for secret in payment)]),
            CHANNEL_KEYS_ENV: ",".join(f"{name}={key}" for name, key in self.channel_keys.items()),
        }
        return {k: v for k, v in os.environ.items() if not k.startswith("RUSHGATE_")} | given


def prepare(settings: Settings) -> Played:
    """Partners on a free port. The caller closes the socket.

    Raises: ConfigInvalid, naming the secrets that are missing.
    """
    wanted = ("partner_secrets", "payment_secrets", "channel_keys")
    missing = [f"RUSHGATE_{name.upper()}" for name in wanted if not getattr(settings, name)]
    if missing:
        raise ConfigInvalid(
            f"{', '.join(missing)} must be set to play the partners where store or ledger is not the embedded one"
        )
    try:
        sock = listen(HOST, 0)
    except OSError as exc:
        raise ConfigInvalid(f"the partners cannot be played: {exc}") from exc
    url = f"http://{HOST}:{sock.getsockname()[1]}"
    return Played(sock, url, settings.partner_secrets, settings.payment_secrets, settings.channel_keys)
