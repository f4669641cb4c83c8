"""Log lines under hostile values: one record a line, valid JSON, no secret, and no flood."""

import io
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.flood import MAX_KEYS, SampledLog
from ops.logs import formatter

ENDS_OF_LINES = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
HOSTILE = [
    'a"b\\c\nd', f"x{ENDS_OF_LINES}y", '\n{"level":"error","event":"forged"}', "\x1b[2J\x1b[31m", "\udcff\ud800", "\0",
    "\u202egnp.exe", b"\xff\n\x00", float("nan"), float("inf"), 2**200, -(2**63) - 1, {1: {2: {3: {4: {5: 6}}}}},
    {"a": {1, 2}}, [b"\n"] * 500, "x" * 1_000_000, object(), ValueError("a\nb"), Exception, None, True, 1.5,
]  # fmt: skip


class Unsayable:
    def __repr__(self) -> str:
        raise RuntimeError("no text of me")


class Log:
    """A logger of its own, and what it wrote."""

    def __init__(self, pretty: bool) -> None:
        self._out = io.StringIO()
        handler = logging.StreamHandler(self._out)
        handler.setFormatter(formatter(pretty))
        self.logger = logging.Logger("rushgate.test", logging.DEBUG)
        self.logger.addHandler(handler)

    @property
    def text(self) -> str:
        return self._out.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()  # which knows of more ends of lines than "\n"

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture(params=["json", "pretty"])
def log(request: pytest.FixtureRequest) -> Log:
    return Log(request.param == "pretty")


@pytest.fixture
def json_log() -> Log:
    return Log(pretty=False)


def test_hostile_values_stay_on_their_line(log: Log) -> None:
    for value in [*HOSTILE, Unsayable()]:
        log.logger.info("event", extra={"value": value, "more": {"in": [value]}})
    assert len(log.lines) == len(HOSTILE) + 1
    assert not any(c in log.text for c in "\x1b\0\u202e")
    assert log.text.isprintable() or "\n" in log.text
    assert max(map(len, log.lines)) < 100_000


def test_hostile_names_and_messages_stay_on_their_line(log: Log) -> None:
    log.logger.info("event %s", "a\nb", extra={"a\nb\u2028": 1, "c\x1b": 2})
    assert len(log.lines) == 1


def test_json_line_has_what_every_line_has_and_no_field_takes_its_place(json_log: Log) -> None:
    fields = {"event": 1, "level": 2, "time": 3, "logger": 4, "pid": 5, "order_id": 6, "exception": 7}
    json_log.logger.warning("real", extra=fields)
    [record] = json_log.records
    assert list(record)[:5] == ["time", "level", "logger", "pid", "event"]
    assert (record["event"], record["level"], record["logger"]) == ("real", "warning", "rushgate.test")
    assert record["time"].endswith("Z")
    assert len(record["time"]) == len("2026-11-22T12:00:00.000Z")
    assert {name: record[f"{name}_"] for name in ("event", "level", "time", "logger", "pid")} == {
        "event": 1, "level": 2, "time": 3, "logger": 4, "pid": 5,
    }  # fmt: skip


def test_exception_is_one_field_in_json_and_indented_lines_for_people(log: Log) -> None:
    try:
        raise ValueError("first\n2026-01-01T00:00:00.000Z error   forged: second")
    except ValueError:
        log.logger.exception("failed", extra={"order_id": "o"})
    if log.text.startswith("{"):
        [record] = log.records
        assert "ValueError: first\n" in record["exception"]
    else:
        assert [line for line in log.lines if not line.startswith("    ")] == log.lines[:1]
    assert "forged" in log.text


SECRET = "s3cr3t-of-the-tests"
SECRET_FIELDS = [
    {"token": SECRET}, {"admin_token": SECRET}, {"key": SECRET}, {"channel_key": SECRET}, {"secret": SECRET},
    {"Authorization": SECRET}, {"password": SECRET}, {"payment_secrets": (SECRET,)}, {"channel_keys": {"app": SECRET}},
    {"settings": {"x": {"partner_secrets": [SECRET]}}}, {"dsn": f"postgresql://user:{SECRET}@host/db"},
    {"why": f"no connection to redis://:{SECRET}@host:6379/0"}, {"why": f"header Authorization: Bearer {SECRET}"},
    {"url": f"unix://:{SECRET}@/run/x"}, {"why": f"user=x password={SECRET} host=y"},
    {"why": f"whsec_{SECRET}"}, {"list": [f"rediss://u:{SECRET}@h"]}, {"b": f"Bearer {SECRET}".encode()},
    {"why": f"no key is rgk_5a738fad8bfc_{SECRET}"}, {"why": f"rgs_5a738fad8bfc_{SECRET}: over"},
    {"why": f"ticket rgt1.eyJ9.{SECRET}"}, {"why": "x " * 1_996 + f"Bearer {'s' * 4_000}{SECRET}"},
    {"error": ValueError(f"postgresql://u:{SECRET}@h")}, {"api_key": SECRET}, {"cookie": SECRET},
]  # fmt: skip


@pytest.mark.parametrize("fields", SECRET_FIELDS, ids=lambda fields: str(fields)[:60])
def test_secrets_are_masked(log: Log, fields: dict[str, Any]) -> None:
    log.logger.info("event", extra=fields)
    assert SECRET not in log.text
    assert "***" in log.text


def test_secrets_in_messages_and_exceptions_are_masked(log: Log) -> None:
    try:
        raise OSError(f"postgresql://u:{SECRET}@h")
    except OSError:
        log.logger.exception("no ledger at postgresql://u:%s@h", SECRET)
    assert SECRET not in log.text


def test_what_is_no_secret_is_shown(json_log: Log) -> None:
    fields = {"request_key": "k-1", "keys": 3, "monkey": "m", "why": "the token bucket is empty", "url": "http://h:1/p"}
    json_log.logger.info("event", extra=fields)
    assert fields.items() <= json_log.records[0].items()


@given(st.dictionaries(st.text(max_size=20), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50) | st.binary(max_size=50),
    lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=5), one, max_size=4), max_leaves=10,
), max_size=5))  # fmt: skip
def test_every_record_is_one_line_of_json(fields: dict[str, Any]) -> None:
    log = Log(pretty=False)
    own = {name: value for name, value in fields.items() if name not in vars(logging.makeLogRecord({}))}
    log.logger.info("event", extra={n: v for n, v in own.items() if n not in ("message", "asctime")})
    [record] = log.records
    assert record["event"] == "event"


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_flood_is_one_line_a_second_that_says_how_many_were_left_out(json_log: Log, clock: Clock) -> None:
    flood = SampledLog(json_log.logger, logging.WARNING, "store is away", clock=clock)
    for _ in range(3_000):  # for three seconds
        clock.now_s += 0.001
        flood(why="x")
    assert [r.get("left_out", 0) for r in json_log.records] == pytest.approx([0, 999, 999], abs=2)
    clock.now_s += 2
    assert flood(why="y")
    assert sum(1 + r.get("left_out", 0) for r in json_log.records) == 3_001  # nothing is forgotten


def test_kinds_of_a_flood_do_not_hide_each_other_and_are_bounded(json_log: Log, clock: Clock) -> None:
    flood = SampledLog(json_log.logger, logging.WARNING, "messages put off", burst=2, clock=clock)
    for _ in range(5):
        flood("payment", topic="payment")
        flood("notify", topic="notify")
    assert [r["topic"] for r in json_log.records] == ["payment", "notify"] * 2
    for n in range(10 * MAX_KEYS):
        flood(str(n))
    assert len(flood._kinds) <= MAX_KEYS


def test_exception_of_a_flood_is_told(json_log: Log) -> None:
    flood = SampledLog(json_log.logger, logging.ERROR, "request failed", with_exception=True)
    for _ in range(10):
        try:
            raise ValueError("why")
        except ValueError:
            flood()
    assert len(json_log.lines) == 1
    assert json_log.records[0]["exception"].endswith("ValueError: why")
