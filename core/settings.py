"""Settings: one frozen struct, read once per process from a TOML file and the environment.

Every field is an environment variable `RUSHGATE_<FIELD>` and a key of the TOML file that `RUSHGATE_CONFIG` names; the
environment wins. docs/operations.md lists them. Unknown or bad settings stop the process and name themselves.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from core.errors import ConfigInvalid
from core.ids import MAX_SHARDS

PREFIX = "RUSHGATE_"

CHANNEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}(\.[a-z0-9]+)?")
SECRET = re.compile(r"[\x21-\x2b\x2d-\x7e]{16,}")  # what a header and a list with commas can carry
# Not of a process: where its TOML file is, the key that `rushgate rush` sends, the services that tests are given.
NO_SETTINGS = (PREFIX + "CONFIG", PREFIX + "CHANNEL_KEY")
TESTS = PREFIX + "TEST_"

Seconds = Annotated[float, Meta(gt=0, le=3_600)]


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting with its unit, range and default; `description` is what docs/operations.md prints."""

    store_url: Annotated[str, Meta(description="Store, e.g. `redis://:password@host:6379/0`. Empty: `rushgate up` starts an embedded Valkey.")] = ""  # fmt: skip # noqa: E501
    ledger_dsn: Annotated[str, Meta(description="Ledger, e.g. `postgresql://user:password@host/rushgate`. Empty: `rushgate up` starts an embedded Postgres.")] = ""  # fmt: skip # noqa: E501
    durability: Annotated[Literal["memory", "fsync", "replicated"], Meta(description="What a 202 is worth: `fsync` = on the store's disk before the answer; `memory` = in its memory; `replicated` = on its disk and confirmed by replicas. Checked at every connect.")] = "fsync"  # fmt: skip # noqa: E501
    replicas: Annotated[int, Meta(ge=1, le=8, description="Replicas of the store that must confirm at level `replicated`. `rushgate up` starts as many beside an embedded Valkey.")] = 1  # fmt: skip # noqa: E501
    replica_wait_ms: Annotated[int, Meta(ge=1, le=60_000, description="Longest wait for the replicas' confirmation, ms; then 503, and the same key is safe.")] = 500  # fmt: skip # noqa: E501
    shards: Annotated[int, Meta(ge=1, le=MAX_SHARDS, description="Shards of this deployment; fixed for its life.")] = 64  # fmt: skip # noqa: E501
    admin_token: Annotated[str, Meta(description="Secret of the admin calls, 16 characters or more. Empty: they are refused.")] = ""  # fmt: skip # noqa: E501
    channel_keys: Annotated[dict[str, str], Meta(description="Secrets of the channels, 16 characters or more: `app=SECRET,web=SECRET`; `app.2=SECRET` gives `app` a second one.")] = {}  # fmt: skip # noqa: E501
    payment_secrets: Annotated[tuple[str, ...], Meta(max_length=8, description="Secrets that the payment centre may sign its callbacks with (Standard Webhooks, `whsec_…`), separated by commas; several for rotation. Empty: callbacks are refused.")] = ()  # fmt: skip # noqa: E501
    partners_url: Annotated[str, Meta(description="Where the relay sends messages to partners: `POST {url}/{partner}/{topic}`. Empty: they wait in the outbox.")] = ""  # fmt: skip # noqa: E501
    partner_secrets: Annotated[tuple[str, ...], Meta(max_length=8, description="Secrets that messages to partners are signed with (Standard Webhooks, `whsec_…`), separated by commas: the first signs.")] = ()  # fmt: skip # noqa: E501
    host: Annotated[str, Meta(min_length=1, description="Address the gateway listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="Port the gateway listens on; 0 = a free one.")] = 8080
    public_url: Annotated[str, Meta(description="Start of the links in answers, e.g. `https://orders.example`. Empty: links are paths.")] = ""  # fmt: skip # noqa: E501
    gateway_workers: Annotated[int, Meta(ge=1, le=64, description="Gateway processes of `rushgate up`.")] = 1
    ledger_workers: Annotated[int, Meta(ge=1, le=64, description="Ledger workers of `rushgate up`.")] = 1
    expiry_workers: Annotated[int, Meta(ge=1, le=64, description="Expiry workers of `rushgate up`.")] = 1
    relay_workers: Annotated[int, Meta(ge=1, le=64, description="Relay workers of `rushgate up`.")] = 1
    reconcile_workers: Annotated[int, Meta(ge=0, le=64, description="Reconcile workers of `rushgate up`.")] = 1
    reconcile_every_s: Annotated[Seconds, Meta(description="Least pause between two audits of all campaigns by a reconcile worker, seconds; it is longer when an audit takes long.")] = 5.0  # fmt: skip # noqa: E501
    data_dir: Annotated[str, Meta(min_length=1, description="Folder of the embedded services and of `rushgate up`.")] = ".rushgate"  # fmt: skip # noqa: E501
    embedded_store_port: Annotated[int, Meta(ge=0, le=65_535, description="Port of the embedded Valkey; 0 = a free one.")] = 0  # fmt: skip # noqa: E501
    body_bytes: Annotated[int, Meta(ge=256, le=1_048_576, description="Largest body of one order, bytes; beyond it 413.")] = 16_384  # fmt: skip # noqa: E501
    batch_body_bytes: Annotated[int, Meta(ge=1_024, le=67_108_864, description="Largest body of `orders:batch`, bytes; beyond it 413.")] = 4_194_304  # fmt: skip # noqa: E501
    queue_orders: Annotated[int, Meta(ge=1, le=1_000_000, description="Most requests that wait for the store in one gateway process; beyond it 503 `overloaded`.")] = 20_000  # fmt: skip # noqa: E501
    queue_ms: Annotated[int, Meta(ge=10, le=60_000, description="Longest wait of a request for the store in one gateway process, ms; beyond it 503 `overloaded`. As many may wait as the store takes in that time.")] = 1_000  # fmt: skip # noqa: E501
    intake_high_orders: Annotated[int, Meta(ge=1, le=100_000_000, description="Accepted orders that may wait for the ledger on the shards that a gateway sells on; beyond it 503 `overloaded`, until half of them have gone.")] = 500_000  # fmt: skip # noqa: E501
    intake_max_age_s: Annotated[float, Meta(gt=0, le=86_400, description="How long the oldest order may wait for the ledger, seconds; beyond it 503 `overloaded`, until it is half as long.")] = 600.0  # fmt: skip # noqa: E501
    store_memory_high: Annotated[float, Meta(ge=0.01, le=1, description="Share of the store's `maxmemory` (if it has one) beyond which new orders get 503 `overloaded`, until it is 0.05 less.")] = 0.85  # fmt: skip # noqa: E501
    store_connections: Annotated[int, Meta(ge=1, le=16, description="Intake connections to the store per gateway process. More than one makes smaller batches: measured slower.")] = 1  # fmt: skip # noqa: E501
    short_way: Annotated[Literal["on", "off"], Meta(description="`off`: every order goes uvicorn's way, to the same answers at half the speed.")] = "on"  # fmt: skip # noqa: E501
    reserve_batch: Annotated[int, Meta(ge=1, le=512, description="Most orders in one `reserve` call.")] = 256
    store_timeout_s: Annotated[Seconds, Meta(description="Longest wait for the store's answer, seconds.")] = 2.0
    ledger_timeout_s: Annotated[Seconds, Meta(description="Longest wait for an answer of the ledger, seconds.")] = 10.0
    recovery: Annotated[Literal["auto", "manual"], Meta(description="What becomes of campaigns that a store lost: `auto` = a reconcile worker rebuilds them from the ledger; `manual` = they stay `recovering` until `rushgate rebuild`.")] = "auto"  # fmt: skip # noqa: E501
    retry_after_s: Annotated[int, Meta(ge=1, le=600, description="`Retry-After` of a 503, seconds.")] = 1
    sold_out_lease_ms: Annotated[int, Meta(ge=0, le=900, description="How long a gateway may answer `sold_out` from memory, and how long returned units wait before they are on sale, ms. Read when a campaign opens. 0: always ask the store.")] = 400  # fmt: skip # noqa: E501
    drain_orders: Annotated[int, Meta(ge=1, le=10_000, description="Orders that a ledger worker aims to write in one transaction.")] = 1_000  # fmt: skip # noqa: E501
    drain_pause_ms: Annotated[int, Meta(ge=0, le=1_000, description="Least time between two reads of a ledger worker that has no backlog, ms: what comes meanwhile is one transaction.")] = 50  # fmt: skip # noqa: E501
    claim_idle_ms: Annotated[int, Meta(ge=100, le=3_600_000, description="How long an entry may stay with a silent ledger worker before another one takes it, ms.")] = 5_000  # fmt: skip # noqa: E501
    grace_s: Annotated[Seconds, Meta(description="Longest graceful stop of a process, seconds; then it is killed.")] = 10.0  # fmt: skip # noqa: E501
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least level that is logged.")] = "info"  # fmt: skip # noqa: E501

    def __post_init__(self) -> None:
        if self.store_url and not self.store_url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        if self.partners_url and not self.partners_url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        if self.admin_token and len(self.admin_token) < 16:
            raise ValueError("must have 16 characters or more")
        # Told by its place: whoever leaves a name out writes the secret where the name belongs.
        for n, (channel, secret) in enumerate(self.channel_keys.items(), 1):
            if not CHANNEL.fullmatch(channel):
                raise ValueError(f"entry {n}: the name must be that of a channel, or channel.N for a further key")
            if not SECRET.fullmatch(secret):
                raise ValueError(f"entry {n}: the key must have 16 or more visible ASCII characters and no comma")
        if len(set(self.channel_keys.values())) < len(self.channel_keys):
            raise ValueError("two entries have the same key")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings of this process. Raises ConfigInvalid, naming the setting and what is wrong with it."""
        return cls(**cls.given(environ))

    @classmethod
    def given(cls, environ: Mapping[str, str]) -> dict[str, Any]:
        """The checked values of those settings that the TOML file or the environment names. Raises as `from_env`."""
        values: dict[str, Any] = {}
        config = environ.get(PREFIX + "CONFIG", "")
        if config:
            values |= _from_toml(Path(config))
        origins = {name: f"{config}: {name}" for name in values}
        hints = get_type_hints(cls)
        for variable, text in environ.items():
            if not variable.startswith(PREFIX) or variable in NO_SETTINGS or variable.startswith(TESTS):
                continue
            name = variable.removeprefix(PREFIX).lower()
            if name not in hints:
                raise ConfigInvalid(f"{variable}: no such setting; docs/operations.md lists them all")
            values[name] = _parse(variable, text, hints[name])
            origins[name] = variable
        return cls._checked(values, origins)

    @classmethod
    def _checked(cls, values: dict[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
        """The values as the fields have them. `origins`: where each is from, to be told when it is bad."""
        found = {}
        for name, value in values.items():
            try:
                found[name] = getattr(msgspec.convert({name: value}, cls), name)
            except msgspec.ValidationError as exc:
                # A ValueError of __post_init__ is in our words, the rest in msgspec's.
                own = isinstance(exc.__cause__, ValueError)
                why = str(exc).partition(" - at `$")[0] if own else wanted(name, value)
                raise ConfigInvalid(f"{origins.get(name, PREFIX + name.upper())}: {why}") from exc
        return found

    def with_values(self, **values: Any) -> "Settings":
        """A copy with other values, checked like all settings. Raises ConfigInvalid."""
        return msgspec.structs.replace(self, **self._checked(values, {}))

    def to_env(self) -> dict[str, str]:
        """The environment that gives a child process these settings."""
        env = {}
        for name, value in msgspec.structs.asdict(self).items():
            if isinstance(value, dict):
                text = ",".join(f"{k}={v}" for k, v in value.items())
            else:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
            env[PREFIX + name.upper()] = text
        return env


def wanted(name: str, value: Any) -> str:
    """What the setting must be instead of `value`, from the type and the Meta of its field: `must be 0 to 65,535`."""
    hint = get_type_hints(Settings, include_extras=True)[name]
    metas: list[Meta] = []
    while hasattr(hint, "__metadata__"):
        metas += hint.__metadata__
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        return f"must be one of {', '.join(get_args(hint))}"
    if hint in (int, float):
        low = next((f"{m.ge:,} to" for m in metas if m.ge is not None), "")
        above = next((f"more than {m.gt:,} and at most" for m in metas if m.gt is not None), "")
        high = next(m.le for m in metas if m.le is not None)
        number = "" if type(value) in (int, float) else "a number, "
        return f"must be {number}{low or above} {high:,}"
    if hint is str:
        return "must be text, and not empty" if any(m.min_length for m in metas) else "must be text"
    if hint == dict[str, str]:
        return "must be names and secrets, all of them text"
    most = next((m.max_length for m in metas if m.max_length), None)
    return "must be a list of texts" + (f", {most} at most" if most else "")


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigInvalid(f"{PREFIX}CONFIG: {path} cannot be read: {exc}") from exc
    for name in values:
        if name not in get_type_hints(Settings):
            raise ConfigInvalid(f"{path}: {name}: no such setting; docs/operations.md lists them all")
    return values


def _parse(variable: str, text: str, hint: Any) -> Any:
    """The text of an environment variable as the kind of value that the field wants."""
    kind = hint
    while hasattr(kind, "__metadata__"):
        kind = get_args(kind)[0]
    try:
        if kind in (int, float):
            return kind(text)
        if kind == dict[str, str]:
            pairs = [_pair(variable, p.strip()) for p in text.split(",") if p.strip()]
            if len(dict(pairs)) < len(pairs):
                raise ConfigInvalid(f"{variable}: two entries have the same name; a further key is channel.N")
            return dict(pairs)
        if kind == tuple[str, ...]:
            return tuple(part.strip() for part in text.split(",") if part.strip())
    except ValueError as exc:
        raise ConfigInvalid(f"{variable}: {text!r} is not a number") from exc
    return text


def _pair(variable: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigInvalid(f"{variable}: expected name=value, separated by commas")
    return name.strip(), value.strip()
