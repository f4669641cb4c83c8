"""Channels and their keys: made, rotated without a gap, revoked. The ledger keeps digests; a key is shown once.

A bearer key is drawn by us. The key of a signing key's id is not kept anywhere: it is derived from the deployment's
signing secret, so that whoever reads ledger, store or a backup of them can sign nothing.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from core.desk.access_books import AccessBooks
from core.errors import ConfigInvalid, Fault, Invalid, Refused
from core.ledger.queries import query
from core.model import CampaignName, ChannelName
from core.rates import KINDS as RATE_KINDS
from core.rates import parse_rate

MAX_CHANNELS = 1_000
MAX_LIVE = 8  # keys of one channel at a time
KEPT = 20  # keys of one channel that are over, for the list
MAX_CAMPAIGNS = 200  # of one channel
MAX_KEEP_S = 30 * 86_400.0
KEEP_S = 86_400.0  # how long a rotated key still opens, if nobody says otherwise

Kind = Literal["bearer", "signing"]

Campaigns = Annotated[list[CampaignName], Meta(max_length=MAX_CAMPAIGNS)]
Rates = Annotated[dict[str, str], Meta(max_length=len(RATE_KINDS))]
KeepS = Annotated[float, Meta(ge=0, le=MAX_KEEP_S)]


class ChannelUnknown(Fault):
    """No channel of that name is in the ledger."""

    status = 404
    code = "unknown_channel"


class ChannelSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A new channel. `campaigns`: that it may sell, null = all; `rates`: its own limits, e.g. {"channel": "500/s"}."""

    channel: ChannelName
    campaigns: Campaigns | None = None
    rates: Rates = {}
    kind: Kind = "bearer"


class ChannelChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What a channel gets; what is left out stays as it is."""

    campaigns: Campaigns | UnsetType | None = UNSET
    rates: Rates | UnsetType = UNSET


class Rotation(Struct, frozen=True, forbid_unknown_fields=True):
    """A new key. `keep_s`: how long the old ones still open, seconds; `kind`: as the newest one's, if left out."""

    keep_s: KeepS = KEEP_S
    kind: Kind | None = None


class Revocation(Struct, frozen=True, forbid_unknown_fields=True):
    """Which key; null = all of them, and with them the channel."""

    key_id: Annotated[str, Meta(min_length=1, max_length=32)] | None = None


class Key(Struct, frozen=True):
    """A key without its secret."""

    key_id: str
    kind: Kind
    state: Literal["active", "expiring", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None = None


class Channel(Struct, frozen=True):
    """A channel as operators see it. `in_force`: the gateways know it so, or will within a second."""

    channel: str
    state: str
    campaigns: list[str] | None
    rates: dict[str, str]
    created_at: datetime
    keys: list[Key]
    in_force: bool = True


class NewKey(Struct, frozen=True):
    """A key as it is shown, once. `in_force`: as of Channel."""

    channel: str
    key_id: str
    kind: Kind
    key: str
    in_force: bool


def signing_key(secret: str, channel: str, key_id: str) -> str:
    """The key that belongs to the id of a signing key, of a deployment with this secret."""
    mac = hmac.digest(secret.encode(), f"rushgate signing key\n{channel}\n{key_id}".encode(), hashlib.sha256)
    return f"rgs_{key_id}_{_text(mac)}"


def digest(key: str) -> bytes:
    """What is kept of a key. It is as random as the digest is long: there is nothing to guess, and no salt needed."""
    return hashlib.sha256(key.encode()).digest()


class ChannelDesk:
    """One per process."""

    def __init__(self, books: AccessBooks, signing_secrets: Sequence[str]) -> None:
        """`signing_secrets`: of the deployment; the first one makes new keys."""
        self._books = books
        self._secrets = signing_secrets

    async def list(self) -> list[Channel]:
        """All channels that were added, by name. Raises LedgerUnavailable."""
        keys: dict[str, list[Key]] = {}
        now = datetime.now(UTC)
        for row in await self._books.read("list_channel_keys"):
            keys.setdefault(row["channel"], []).append(_key(row, now))
        return [_channel(row, keys.get(row["channel"], [])) for row in await self._books.read("list_channels")]

    async def show(self, channel: str) -> Channel:
        """Raises ChannelUnknown, LedgerUnavailable."""
        for one in await self.list():
            if one.channel == channel:
                return one
        raise ChannelUnknown(f"no channel {channel!r} was added; `rushgate channel list` has them all")

    async def add(self, spec: ChannelSpec) -> NewKey:
        """The channel is there, with one key. One that was revoked is there again; its old keys stay revoked.

        Raises: Refused if it is there already, or too many are; Invalid; ConfigInvalid; LedgerUnavailable.
        """
        _check_rates(spec.rates)

        async def work(connection: Any) -> tuple[str, str]:
            rows = {r["channel"]: r["state"] for r in await connection.fetch(query("list_channels"))}
            if rows.get(spec.channel) == "active":
                raise Refused(f"channel {spec.channel} is there already: `rotate` gives it another key")
            if spec.channel not in rows and len(rows) >= MAX_CHANNELS:
                raise Refused(f"there are {MAX_CHANNELS} channels already")
            await _put(connection, spec.channel, "active", spec.campaigns, spec.rates)
            return await self._new_key(connection, spec.channel, spec.kind)

        (key_id, key), in_force = await self._books.change(work)
        return NewKey(spec.channel, key_id, spec.kind, key, in_force)

    async def rotate(self, channel: str, wanted: Rotation) -> NewKey:
        """The channel has one key more; the others open for `keep_s` yet, if they do not end sooner.

        Raises: ChannelUnknown; Refused if it was revoked, or has too many keys; ConfigInvalid; LedgerUnavailable.
        """

        async def work(connection: Any) -> tuple[str, Kind, str]:
            await _active(connection, channel)
            now = datetime.now(UTC)
            keys = [_key(r, now) for r in await connection.fetch(query("list_channel_keys")) if r["channel"] == channel]
            live = [k for k in keys if k.state in ("active", "expiring")]
            if len(live) >= MAX_LIVE and wanted.keep_s > 0:
                raise Refused(f"the channel has {MAX_LIVE} keys: revoke one, or keep none of them")
            kind: Kind = wanted.kind or (live[-1].kind if live else keys[-1].kind if keys else "bearer")
            key_id, key = await self._new_key(connection, channel, kind)
            if wanted.keep_s > 0:
                await connection.execute(query("expire_channel_keys"), channel, key_id, wanted.keep_s)
            else:
                for old in live:
                    await connection.execute(query("revoke_channel_keys"), channel, old.key_id)
            await connection.execute(query("drop_channel_keys"), channel, KEPT)
            return key_id, kind, key

        (key_id, kind, key), in_force = await self._books.change(work)
        return NewKey(channel, key_id, kind, key, in_force)

    async def revoke(self, channel: str, key_id: str | None) -> Channel:
        """The key opens nothing any more; without one: no key of the channel does, those of the settings and its
        tickets included. Again, it is so already. Raises: ChannelUnknown; Invalid for a key that is not its;
        LedgerUnavailable."""

        async def work(connection: Any) -> None:
            row = await _row(connection, channel)
            if key_id is not None:
                known = await connection.fetch(query("list_channel_keys"))
                if all((r["channel"], r["key_id"]) != (channel, key_id) for r in known):
                    raise Invalid(f"channel {channel} has no key {key_id!r}", "key_id")
            else:
                await _put(connection, channel, "revoked", _campaigns(row), _rates(row))
            await connection.execute(query("revoke_channel_keys"), channel, key_id)

        _, in_force = await self._books.change(work)
        return msgspec.structs.replace(await self.show(channel), in_force=in_force)

    async def set(self, channel: str, change: ChannelChange) -> Channel:
        """The channel may sell these campaigns, at these rates. Raises: ChannelUnknown, Invalid, LedgerUnavailable."""
        if change.rates is not UNSET:
            _check_rates(change.rates)

        async def work(connection: Any) -> None:
            row = await _row(connection, channel)
            campaigns = _campaigns(row) if change.campaigns is UNSET else change.campaigns
            rates = _rates(row) if change.rates is UNSET else change.rates
            await _put(connection, channel, row["state"], campaigns, rates)

        _, in_force = await self._books.change(work)
        return msgspec.structs.replace(await self.show(channel), in_force=in_force)

    async def _new_key(self, connection: Any, channel: str, kind: Kind) -> tuple[str, str]:
        key_id = secrets.token_hex(6)
        if kind == "signing":
            if not self._secrets:
                raise ConfigInvalid("RUSHGATE_SIGNING_SECRETS is not set: signing keys are made of it")
            key = signing_key(self._secrets[0], channel, key_id)
        else:
            key = f"rgk_{key_id}_{_text(secrets.token_bytes(32))}"
        await connection.execute(query("put_channel_key"), key_id, channel, kind, digest(key))
        return key_id, key


async def _row(connection: Any, channel: str) -> Any:
    for row in await connection.fetch(query("list_channels")):
        if row["channel"] == channel:
            return row
    raise ChannelUnknown(f"no channel {channel!r} was added; `rushgate channel list` has them all")


async def _active(connection: Any, channel: str) -> None:
    if (await _row(connection, channel))["state"] != "active":
        raise Refused(f"channel {channel} was revoked: `add` brings it back with a new key")


async def _put(
    connection: Any, channel: str, state: str, campaigns: Sequence[str] | None, rates: dict[str, str]
) -> None:
    listed = None if campaigns is None else msgspec.json.encode(sorted(set(campaigns))).decode()
    await connection.execute(query("put_channel"), channel, state, listed, msgspec.json.encode(rates).decode())


def _check_rates(rates: dict[str, str]) -> None:
    for kind, rate in rates.items():
        if kind not in RATE_KINDS:
            raise Invalid(f"there are rates for {', '.join(RATE_KINDS)}", "rates")
        try:
            parse_rate(rate)
        except ValueError as exc:
            raise Invalid(f"{kind}: {exc}", "rates") from exc


def _campaigns(row: Any) -> Sequence[str] | None:
    return None if row["campaigns"] is None else msgspec.json.decode(row["campaigns"], type=list[str])


def _rates(row: Any) -> dict[str, str]:
    return msgspec.json.decode(row["rates"], type=dict[str, str])


def _key(row: Any, now: datetime) -> Key:
    ends = row["expires_at"]
    state: Literal["active", "expiring", "expired", "revoked"] = "active"
    if row["revoked_at"] is not None:
        state = "revoked"
    elif ends is not None:
        state = "expired" if ends <= now else "expiring"
    return Key(row["key_id"], row["kind"], state, row["created_at"], ends)


def _channel(row: Any, keys: Sequence[Key]) -> Channel:
    campaigns = _campaigns(row)
    listed = None if campaigns is None else [*campaigns]
    return Channel(row["channel"], row["state"], listed, _rates(row), row["created_at"], [*keys])


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
