"""HTTPS without a proxy in front: the certificate, and a new one without a restart."""

import asyncio
import logging
import signal
import ssl
from typing import Any

from core.errors import ConfigInvalid
from core.settings import Settings

logger = logging.getLogger("rushgate.gateway")


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the certificate of the settings; None if there is none.

    Raises ConfigInvalid: one of the two files is missing, cannot be read, or they do not belong together.
    """
    if not settings.tls_cert and not settings.tls_key:
        return None
    if not settings.tls_cert or not settings.tls_key:
        raise ConfigInvalid("RUSHGATE_TLS_CERT and RUSHGATE_TLS_KEY go together: one of them is missing")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, settings)
    return context


def reload_at_sighup(context: ssl.SSLContext | None, settings: Settings) -> None:
    """From now on SIGHUP gives new connections the certificate that the files have then; a bad one changes nothing.

    Without TLS it does nothing: unhandled it would end the process, with all that is in flight.
    """

    def again() -> None:
        if context is None:
            logger.warning("certificate not read again", extra={"why": "RUSHGATE_TLS_CERT is empty: there is none"})
            return
        try:
            server_context(settings)  # tried apart: half a load would leave a key that is not the certificate's
            _load(context, settings)
        except ConfigInvalid as exc:
            logger.error("certificate not read again", extra={"why": exc.detail})
        else:
            logger.info("certificate read again")

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, again)


def handshakes_within(seconds: float) -> None:
    """A client of a server that this event loop makes from now on has so long for its TLS handshake.

    No protocol, and so not gateway/edge.py, hears of a connection before; the event loop's own limit is a minute.
    """
    loop: Any = asyncio.get_running_loop()
    create_server = loop.create_server

    async def create_bounded(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("ssl") is not None:
            kwargs.setdefault("ssl_handshake_timeout", seconds)
        return await create_server(*args, **kwargs)

    loop.create_server = create_bounded  # uvicorn has no option for it


def _load(context: ssl.SSLContext, settings: Settings) -> None:
    def no_password() -> str:
        raise ConfigInvalid("RUSHGATE_TLS_KEY: the key has a password; give one without")

    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, no_password)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigInvalid(f"RUSHGATE_TLS_CERT, RUSHGATE_TLS_KEY: {exc.strerror or exc}") from exc
