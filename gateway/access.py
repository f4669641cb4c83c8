"""Who is calling: channels by their keys, buyers by their tickets, operators by the admin token; and who may not order.

No timing tells of a secret, and nothing is decoded before it is known to be ours. What channels there are is a copy
that gateway/access_watch.py keeps as new as the store's; beside it the keys of the setting hold for ever.
"""

import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from core import request_signing as signing
from core.desk.channels import signing_key
from core.errors import Fault, Invalid, StoreUnavailable
from core.signing import SignatureInvalid
from core.tickets import SCHEME, Ticket, Tickets
from gateway.blocklist import BlockList
from lua.access import AccessCopy, KeyCopy

MAX_SEEN = 1_024  # headers that were right, remembered as they came


class Policy(NamedTuple):
    """What a channel may do beyond what everybody may."""

    campaigns: frozenset[str] | None = None  # that it may sell; None = all
    rates: Mapping[str, str] = {}  # its own rate limits by kind, as the operator wrote them


FREE = Policy()


class Caller(NamedTuple):
    """Who calls: a channel by one of its keys, or a buyer by a ticket of that channel."""

    channel: str
    ticket: Ticket | None = None
    policy: Policy = FREE  # of the channel
    key_id: str = ""  # of the key; "" = of a ticket, or of the setting RUSHGATE_CHANNEL_KEYS


class Unauthorized(Fault):
    """Nobody we know."""

    status = 401
    code = "unauthorized"


class Blocked(Invalid):
    """The buyer or the address is on a block list."""

    status = 403
    code = "blocked"


class CampaignNotAllowed(Invalid):
    """The operator lets this channel sell other campaigns."""

    status = 403
    code = "campaign_not_allowed"


class Claim(NamedTuple):
    """A request that says whose it is, with a signature that is not looked at yet: its body is not there."""

    caller: Caller
    secret: bytes
    head: bytes  # all that is signed before the body
    signature: bytes

    def proved(self, body: bytes) -> Caller:
        """Whose request it is, with this body. Raises SignatureInvalid."""
        if not hmac.compare_digest(signing.signature(self.secret, self.head, body), self.signature):
            raise SignatureInvalid(
                "Rushgate-Signature: does not match the time, the method, the path, the key's id, the request key and "
                "the raw body"
            )
        return self.caller


class Access:
    """The keys of one deployment, kept as digests; `guards`: some caller, buyer or address is refused by `check`."""

    def __init__(
        self, channel_keys: Mapping[str, str], admin_token: str, ticket_secrets: Sequence[str] = (),
        signing_secrets: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`channel_keys`: channel, or channel.N for a further key of the same channel -> secret."""
        # Looked up by digest: how long a look-up takes says nothing about the secret behind it.
        self._own = {_digest(key.encode()): name.partition(".")[0] for name, key in channel_keys.items()}
        self._admin = _digest(admin_token.encode()) if admin_token else None
        self._tickets = Tickets(ticket_secrets)
        self._signing_secrets = signing_secrets
        self._copy: AccessCopy | None
        self._next_end_ms = 0  # when the first key or block of the copy is over; 0 = none ever is
        self._apply(AccessCopy(0, [], [], []), 0)
        self._copy = None  # none of the store's

    @property
    def version(self) -> int | None:
        """Of the copy in force; None = there was none yet."""
        return None if self._copy is None else self._copy.version

    @property
    def unusable(self) -> list[str]:
        """Ids of signing keys that belong to none of our signing secrets."""
        return self._unusable

    def install(self, copy: AccessCopy) -> None:
        """The copy is in force: what it does not have opens nothing from now on."""
        self._apply(copy, int(time.time() * 1000))

    def expire(self, now_ms: int) -> None:
        """What was over before `now_ms` (wall clock) is not in force. Cheap if nothing was."""
        if self._copy is not None and 0 < self._next_end_ms <= now_ms:
            self._apply(self._copy, now_ms)

    def _apply(self, copy: AccessCopy, now_ms: int) -> None:
        keys = [k for k in copy.keys if not 0 < k.expires_ms <= now_ms]
        blocks = [b for b in copy.blocks if not 0 < b.until_ms <= now_ms]
        ends = [k.expires_ms for k in keys if k.expires_ms] + [b.until_ms for b in blocks if b.until_ms]
        self._revoked = {c.channel for c in copy.channels if not c.active}
        self._policies = {
            c.channel: Policy(None if c.campaigns is None else frozenset(c.campaigns), c.rates)
            for c in copy.channels
            if c.campaigns is not None or c.rates
        }
        self._callers = {
            digest: Caller(channel, None, self._policy(channel))
            for digest, channel in self._own.items()
            if channel not in self._revoked
        }
        self._signers: dict[bytes, tuple[Caller, bytes]] = {}
        self._unusable = []
        for key in keys:
            if key.channel in self._revoked:
                continue
            caller = Caller(key.channel, None, self._policy(key.channel), key.key_id)
            if not key.signing:
                self._callers[key.digest] = caller
            elif secret := self._secret_of(key):
                self._signers[key.key_id.encode()] = caller, secret
            else:
                self._unusable.append(key.key_id)
        self._live = {key.key_id for key in keys} | {""}
        self._seen: dict[bytes, Caller] = {}
        self.blocks = BlockList(blocks)
        self.guards = bool(self.blocks) or any(p.campaigns is not None for p in self._policies.values())
        self.rated = any(p.rates for p in self._policies.values())  # some channel has rates of its own
        self._next_end_ms = min(ends, default=0)
        self._copy = copy

    def rates(self, channel: str) -> Mapping[str, str]:
        """A channel's own rate limits by kind; the same object until they may have changed."""
        return self._policy(channel).rates

    def _policy(self, channel: str) -> Policy:
        return self._policies.get(channel, FREE)

    def _secret_of(self, key: KeyCopy) -> bytes | None:
        for secret in self._signing_secrets:
            made = signing_key(secret, key.channel, key.key_id).encode()
            if hmac.compare_digest(_digest(made), key.digest):
                return made
        return None

    def caller(self, authorization: bytes) -> Caller | None:
        """Who sends this `Authorization: Bearer …` header; None = nobody we know, or the request is signed instead."""
        # A digest costs as much as a queue. A look-up compares bytes only where all 64 bits of a hash with a secret
        # seed are equal: it tells of a header that was right once no more than a look-up by digest.
        known = self._seen.get(authorization)
        if known is not None:
            return known
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        if token.startswith(SCHEME):
            ticket = self._tickets.read(token, int(time.time() * 1000))
            if ticket is None or ticket.channel in self._revoked:
                return None
            return Caller(ticket.channel, ticket, self._policy(ticket.channel))
        caller = self._callers.get(_digest(token))
        if caller is not None and len(self._seen) < MAX_SEEN:
            self._seen[authorization] = caller
        return caller

    def claim(self, method: bytes, target: bytes, heads: Mapping[bytes, bytes]) -> Claim | None:
        """Whose request it says to be; None = it has no signature. `target`: the path with its query, as it was sent;
        `heads`: all headers, each once, names in small letters. Nothing is decoded.

        Raises: SignatureInvalid for headers that are not as they must be, a time too far from ours, or an unknown key.
        """
        if signing.SIGNATURE not in heads and signing.KEY not in heads:
            return None
        why = signing.wrong(heads, time.time())
        if why:
            raise SignatureInvalid(why)
        key_id = heads[signing.KEY]
        found = self._signers.get(key_id)
        if found is None:
            if self._copy is None:
                raise self.stranger()
            raise SignatureInvalid("Rushgate-Key: no signing key of ours has this id, or it is over")
        caller, secret = found
        request_key = heads.get(signing.REQUEST_KEY, b"")
        head = signing.signed_head(heads[signing.TIME], method, target, key_id, request_key)
        return Claim(caller, secret, head, heads[signing.SIGNATURE])

    def identify(self, authorization: bytes, scope: Mapping[str, Any]) -> Caller | Claim:
        """Who calls, or whose request it says to be, which its body proves.

        Raises: Unauthorized, SignatureInvalid; StoreUnavailable if nobody told this process yet whom there is to know.
        """
        found = self.caller(authorization) or self.claim_of(scope)
        if found is None:
            raise self.stranger()
        return found

    def claim_of(self, scope: Mapping[str, Any]) -> Claim | None:
        """As `claim`, of an ASGI scope. Raises also for a header of a signature that stands there twice."""
        pairs: list[tuple[bytes, bytes]] = scope["headers"]
        heads = dict(pairs)
        if signing.SIGNATURE not in heads and signing.KEY not in heads:
            return None
        for name in (*signing.HEADERS, signing.REQUEST_KEY):
            if sum(n == name for n, _ in pairs) > 1:
                raise SignatureInvalid(f"{name.decode().title()}: stands there more than once")
        target: bytes = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        return self.claim(scope["method"].encode(), target, heads)

    def stranger(self) -> Fault:
        """What to tell somebody nobody knows: that, unless this process has not yet heard whom there is to know."""
        if self._copy is None:
            return StoreUnavailable("the keys of the channels could not be read yet")
        return Unauthorized("")

    def stands(self, caller: Caller) -> bool:
        """Whether a caller of before would still be let in: for answers that take long."""
        ticket = caller.ticket
        if ticket is not None and time.time() * 1000 >= ticket.expires_ms:
            return False
        return caller.channel not in self._revoked and caller.key_id in self._live

    def still(self, caller: Caller) -> Caller:
        """The same caller, of a request whose body came long after its head. Raises Unauthorized if they would not be
        let in now: a head that waits must be no way around a revoked key."""
        if not self.stands(caller):
            raise Unauthorized("")
        return caller

    def check(self, caller: Caller, campaign: str, buyer_id: str, client_ip: str | None) -> None:
        """The caller may sell the campaign, to this buyer, at this address ("" or None: not known).

        Asked only while `guards`. Raises: CampaignNotAllowed; Blocked, which does not tell why.
        """
        allowed = caller.policy.campaigns
        if allowed is not None and campaign not in allowed:
            raise CampaignNotAllowed(f"channel {caller.channel} may not sell campaign {campaign}")
        blocks = self.blocks
        if buyer_id in blocks.buyers:
            raise Blocked("this buyer may not order", "buyer_id")
        if client_ip and blocks.any_address and blocks.has_address(client_ip):
            raise Blocked("nobody may order from this address", "client_ip")

    def is_admin(self, authorization: bytes) -> bool:
        """Whether the header carries the admin token; never so if none is set."""
        scheme, _, token = authorization.partition(b" ")
        return (
            self._admin is not None and scheme.lower() == b"bearer" and hmac.compare_digest(_digest(token), self._admin)
        )


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
