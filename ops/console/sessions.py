"""Who may use the console: a login with the admin token, carried on by a signed cookie, and the guess limit.

A session is nothing but its cookie: it survives a restart of the console and ends with its time, with a new admin
token, or with a logout (which this process remembers for as long as the cookie would have lived).
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from typing import NamedTuple

import msgspec

from core.seals import Seals

KIND = "rgc1"
ENDED_MAX = 4_096  # logouts that are remembered
ADDRESSES_MAX = 1_024  # whose wrong tokens are counted
WRONG_MAX = 10  # wrong tokens of one address within WINDOW_S
WRONG_MAX_ALL = 200  # of all addresses
WINDOW_S = 60.0


class Session(NamedTuple):
    """Somebody who has shown the admin token. `nonce` names the session; `expires_s` is wall time."""

    nonce: str
    expires_s: int


class Sessions:
    """Makes and reads session cookies; nothing of them is kept but which were logged out."""

    def __init__(self, admin_token: str, lasts_s: int) -> None:
        """Without an admin token nobody can log in."""
        self._digest = hashlib.sha256(admin_token.encode()).digest() if admin_token else None
        self._seals = Seals(KIND, [admin_token] if admin_token else [])
        self._csrf_key = hmac.digest(admin_token.encode(), b"rushgate console csrf", hashlib.sha256)
        # A cookie is not bound to a port: consoles of two deployments on one machine must not log each other out.
        place = hmac.digest(self._csrf_key, b"cookie", hashlib.sha256).hex()[:8]
        self.cookie = f"rushgate_console_{place}"
        self.lasts_s = lasts_s
        self._ended: OrderedDict[str, int] = OrderedDict()

    def is_token(self, token: str) -> bool:
        """Whether it is the admin token; takes as long for any other text of its length."""
        return self._digest is not None and hmac.compare_digest(hashlib.sha256(token.encode()).digest(), self._digest)

    def open(self) -> tuple[Session, str]:
        """A new session and the value of its cookie."""
        session = Session(secrets.token_urlsafe(16), int(time.time()) + self.lasts_s)
        return session, self._seals.seal(msgspec.json.encode(session))

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie, if it is ours, not over and not logged out."""
        payload = self._seals.open(cookie.encode())
        if payload is None:
            return None
        try:
            session = msgspec.json.decode(payload, type=Session)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # of another version of ours
        return session if session.expires_s > time.time() and session.nonce not in self._ended else None

    def end(self, session: Session) -> None:
        """Its cookie is worth nothing any more."""
        while self._ended and (len(self._ended) >= ENDED_MAX or next(iter(self._ended.values())) < time.time()):
            self._ended.popitem(last=False)
        self._ended[session.nonce] = session.expires_s

    def csrf(self, session: Session) -> str:
        """What a page of this session must send with every action."""
        return hmac.digest(self._csrf_key, session.nonce.encode(), hashlib.sha256).hex()

    def is_csrf(self, session: Session, given: str) -> bool:
        return hmac.compare_digest(self.csrf(session).encode(), given.encode())


class Guesses:
    """Counts wrong tokens: after WRONG_MAX of one address, or WRONG_MAX_ALL of all, none is looked at for a while."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, list[float]] = OrderedDict()
        self._all: list[float] = []

    def wait_s(self, address: str) -> float:
        """How long the address must wait before its next try, seconds; 0 = not at all."""
        now_s = time.monotonic()
        self._all = [at for at in self._all if at > now_s - WINDOW_S]
        mine = [at for at in self._of.get(address, []) if at > now_s - WINDOW_S]
        if mine:
            self._of[address] = mine
        else:
            self._of.pop(address, None)
        waits = [0.0]
        if len(mine) >= WRONG_MAX:
            waits.append(mine[-WRONG_MAX] + WINDOW_S - now_s)
        if len(self._all) >= WRONG_MAX_ALL:
            waits.append(self._all[-WRONG_MAX_ALL] + WINDOW_S - now_s)
        return max(waits)

    def wrong(self, address: str) -> None:
        """The address has shown a wrong token."""
        now_s = time.monotonic()
        self._all.append(now_s)
        self._of.setdefault(address, []).append(now_s)
        self._of.move_to_end(address)
        if len(self._of) > ADDRESSES_MAX:
            self._of.popitem(last=False)
