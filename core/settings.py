"""Settings: one frozen struct, read once per process from a TOML file and the environment.

Every field is an environment variable `RUSHGATE_<FIELD>` and a key of the TOML file that `RUSHGATE_CONFIG` names; the
environment wins. docs/operations.md lists them. Unknown or bad settings stop the process and name themselves.
"""

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from core.errors import ConfigInvalid
from core.ids import MAX_SHARDS
from core.rates import parse_rates
from core.urls import check_store_url, check_url

PREFIX = "RUSHGATE_"

CHANNEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}(\.[a-z0-9]+)?")
LISTEN = re.compile(r"([a-zA-Z0-9._-]*|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}")
SECRET = re.compile(r"[\x21-\x2b\x2d-\x7e]{16,}")  # what a header and a list with commas can carry
TOKEN = re.compile(r"[\x21-\x7e]{16,}")  # what a header can carry
ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]{1,255}")  # as browsers send it: in small letters, without a path
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
    tls_cert: Annotated[str, Meta(description="File with the gateway's certificate chain (PEM), to speak HTTPS itself; with `RUSHGATE_TLS_KEY`. Read again at SIGHUP. Empty: plain HTTP, for a proxy in front.")] = ""  # fmt: skip # noqa: E501
    tls_key: Annotated[str, Meta(description="File with the key of `RUSHGATE_TLS_CERT` (PEM, no password).")] = ""
    trusted_proxies: Annotated[tuple[str, ...], Meta(max_length=256, description="Addresses and networks of the proxies whose `X-Forwarded-For` is believed, separated by commas: `10.0.0.0/8,::1`.")] = ()  # fmt: skip # noqa: E501
    max_connections: Annotated[int, Meta(ge=16, le=1_000_000, description="Connections of clients that a gateway process holds; beyond it 503 `too_many_connections`.")] = 10_000  # fmt: skip # noqa: E501
    address_connections: Annotated[int, Meta(ge=0, le=1_000_000, description="Connections of one address (of IPv6 of a /64) that a gateway process holds. 0: no limit of their own; set it only where no proxy stands in front.")] = 0  # fmt: skip # noqa: E501
    request_timeout_s: Annotated[Seconds, Meta(description="Longest time in which a client must have sent a request, and in which it must begin to take an answer, seconds; then it is cut off.")] = 30.0  # fmt: skip # noqa: E501
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
    console: Annotated[Literal["on", "off"], Meta(description="Whether `rushgate up` starts the operators' console.")] = "on"  # fmt: skip # noqa: E501
    console_host: Annotated[str, Meta(min_length=1, description="Address the console listens on. Beyond this machine only behind TLS.")] = "127.0.0.1"  # fmt: skip # noqa: E501
    console_port: Annotated[int, Meta(ge=0, le=65_535, description="Port the console listens on; 0 = a free one. `rushgate up` takes a free one too when it is taken.")] = 8081  # fmt: skip # noqa: E501
    console_session_s: Annotated[int, Meta(ge=1, le=604_800, description="How long a login to the console lasts, seconds.")] = 28_800  # fmt: skip # noqa: E501
    ticket_secrets: Annotated[tuple[str, ...], Meta(max_length=8, description="Secrets that admission tickets and places in the waiting room are signed with, 16 characters or more, separated by commas: the first signs. Empty: there are none. `rushgate up` draws one.")] = ()  # fmt: skip # noqa: E501
    signing_secrets: Annotated[tuple[str, ...], Meta(max_length=8, description="Secrets that the signing keys of channels are made of, 16 characters or more, separated by commas: the first makes new keys, all of them know theirs. Empty: there are no signing keys. `rushgate up` draws one.")] = ()  # fmt: skip # noqa: E501
    ticket_ttl_s: Annotated[int, Meta(ge=10, le=86_400, description="How long an admission ticket is good, seconds.")] = 600  # fmt: skip # noqa: E501
    cors_origins: Annotated[tuple[str, ...], Meta(max_length=100, description="Origins whose pages may call us from a browser, separated by commas: `https://shop.example`. Empty: none.")] = ()  # fmt: skip # noqa: E501
    captcha_url: Annotated[str, Meta(description="Where a captcha's answer is verified (`siteverify` form), for waiting rooms that want one.")] = ""  # fmt: skip # noqa: E501
    captcha_secret: Annotated[str, Meta(description="Secret that the verifier of captchas knows us by.")] = ""
    captcha_timeout_s: Annotated[Seconds, Meta(description="Longest wait for the verifier of captchas, seconds; then 503 `captcha_unavailable`.")] = 3.0  # fmt: skip # noqa: E501
    metrics_listen: Annotated[str, Meta(description="Where each process serves its own metrics, `host:port`; port 0 = a free one, which its sign of life tells. Empty: nothing is counted, and there are none.")] = "127.0.0.1:0"  # fmt: skip # noqa: E501
    rates: Annotated[str, Meta(max_length=200, description="Rate limits of orders, unless campaign or channel say otherwise, by kind: `buyer=5/s:10,ip=20/s:40,device=5/s,channel=2000/s:4000` = so many in a second (or `/m`, `/h`), and after the colon so many at once. Empty: none.")] = ""  # fmt: skip # noqa: E501
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least level that is logged.")] = "info"  # fmt: skip # noqa: E501
    log_format: Annotated[Literal["auto", "json", "pretty"], Meta(description="How a log line looks: `json` = one JSON object; `pretty` = for people; `auto` = `pretty` on a terminal, `json` elsewhere.")] = "auto"  # fmt: skip # noqa: E501
    tracing: Annotated[Literal["off", "otlp", "file"], Meta(description="Where spans of orders go: `otlp` = to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names (needs `rushgate[tracing]`); `file` = a line of JSON each into `RUSHGATE_TRACING_FILE`.")] = "off"  # fmt: skip # noqa: E501
    tracing_file: Annotated[str, Meta(description="File of spans, shared by all processes of this machine. Empty: `spans.jsonl` in `RUSHGATE_DATA_DIR`.")] = ""  # fmt: skip # noqa: E501
    tracing_ratio: Annotated[float, Meta(ge=0, le=1, description="Share of the orders that are traced when their callers say nothing of it, 0 to 1. A caller's `traceparent` decides for its own orders.")] = 0.01  # fmt: skip # noqa: E501
    tracing_max_per_s: Annotated[int, Meta(ge=1, le=100_000, description="Most orders that a gateway process begins to trace in a second, whoever asked for it.")] = 100  # fmt: skip # noqa: E501

    def __post_init__(self) -> None:
        if self.store_url:
            check_store_url(self.store_url)
        if self.ledger_dsn:
            check_url(self.ledger_dsn, "postgresql", "postgres")
        for url in filter(None, (self.partners_url, self.captcha_url, self.public_url)):
            check_url(url, "http", "https")
        for n, secret in enumerate(self.ticket_secrets, 1):
            if not SECRET.fullmatch(secret):
                raise ValueError(f"entry {n}: must have 16 or more visible ASCII characters and no comma")
        if self.metrics_listen and not LISTEN.fullmatch(self.metrics_listen):
            raise ValueError("must be host:port, or empty")
        for n, secret in enumerate(self.signing_secrets, 1):
            if not SECRET.fullmatch(secret):
                raise ValueError(f"entry {n}: must have 16 or more visible ASCII characters and no comma")
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin, such as https://shop.example")
        if self.admin_token and not TOKEN.fullmatch(self.admin_token):
            raise ValueError("must have 16 or more visible ASCII characters")
        parse_rates(self.rates)
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                raise ValueError(f"{network!r} is no address and no network") from None
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
        return 'must be names and secrets, all of them text: { app = "…", "app.2" = "…" }'
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
