"""The header of a script is its interface: it says what the body does, and what the Python beside it believes."""

import re
from enum import IntEnum

import pytest

from lua.access import PublishCode
from lua.connection import SharedConnection
from lua.reserve import ReserveCode
from lua.room import PutCode, RoomCode
from lua.scripts import (
    AllocateCode,
    ChangeCode,
    FenceCode,
    GivebackCode,
    OpenCode,
    RebuildCode,
    ReleaseCode,
    RestockCode,
    SettleCode,
)
from lua.source import LuaSource, script_names
from lua.witness import WitnessCode
from tests.support import tell

CODES: dict[str, type[IntEnum]] = {
    "reserve": ReserveCode,
    "open": OpenCode,
    "change": ChangeCode,
    "restock": RestockCode,
    "release": ReleaseCode,
    "settle": SettleCode,
    "giveback": GivebackCode,
    "allocate": AllocateCode,
    "fence": FenceCode,
    "rebuild": RebuildCode,
    "witness": WitnessCode,
    "room": RoomCode,
    "room_put": PutCode,
    "publish_access": PublishCode,
}
FLAGS = {"room": "", "room_put": "", "reserve": "", "open": "", "rebuild": "", "fence": "allow-oom", "witness": "allow-oom", "judged": "allow-oom", "change": "allow-oom", "restock": "allow-oom", "ack": "allow-oom", "release": "allow-oom", "settle": "allow-oom", "giveback": "allow-oom", "allocate": "allow-oom", "touch": "allow-oom", "sign": "allow-oom", "rate": "", "backlog": "no-writes", "audit": "no-writes", "publish_access": "allow-oom"}  # fmt: skip # noqa: E501
NO_KEY = {"TIME"}  # commands that name no key

every_script = pytest.mark.parametrize("name", script_names())


def parts(name: str) -> tuple[list[str], list[str]]:
    """The lines of the header and of the body, its comments left out."""
    lines = LuaSource.read(name).text.decode().splitlines()
    end = next(n for n, line in enumerate(lines) if not line.startswith(("#!", "--")))
    return lines[:end], [re.sub(r"--.*", "", line) for line in lines[end:]]


def indexes(pattern: str, text: str) -> set[int]:
    return {int(n) for n in re.findall(pattern, text)}


@every_script
def test_script_header_declares_the_keys_of_the_body(name: str) -> None:
    header, body = parts(name)
    declared = indexes(r"(?m)^-- KEYS\[(\d+)\]", "\n".join(header))
    assert declared == indexes(r"KEYS\[(\d+)\]", "\n".join(body))
    assert declared == set(range(1, LuaSource.read(name).header_keys + 1))
    assert "KEYS[" not in re.sub(r"KEYS\[\d+\]", "", "\n".join(body))


@every_script
def test_script_header_names_the_keys_as_the_body_does(name: str) -> None:
    header, body = parts(name)
    named = re.findall(r"(?m)^-- KEYS\[\d+\] (\w+)", "\n".join(header))
    bound = [n.strip() for n, v in bindings(body) if v.startswith("KEYS[")]
    assert bound in ([], named)


@every_script
def test_script_header_documents_every_argument(name: str) -> None:
    header, body = parts(name)
    text = "\n".join(header)
    documented = indexes(r"(?m)^-- ARGV\[(\d+)", text)
    used = indexes(r"ARGV\[(\d+)\]", "\n".join(body))
    assert used <= documented
    assert documented in (set(), set(range(1, max(documented, default=0) + 1)))
    if "unpack(ARGV" in "\n".join(body):
        assert "..." in text


@every_script
def test_script_codes_are_the_same_in_header_body_and_python(name: str) -> None:
    _, body = parts(name)
    in_body = {n: int(v) for n, v in bindings(body) if re.fullmatch(r"[A-Z_]+", n) and v.isdigit()}
    in_python = {code.name: code.value for code in CODES.get(name, [])}
    assert LuaSource.read(name).codes == in_body == in_python


def bindings(body: list[str]) -> list[tuple[str, str]]:
    """Names and values of the `local a, b = x, y` statements at the top level."""
    found: list[tuple[str, str]] = []
    for line in body:
        if match := re.match(r"local ([\w, ]+) = (.+)", line):
            found += zip(match[1].split(", "), match[2].split(", "), strict=False)
    return found


@every_script
def test_script_begins_with_its_flags(name: str) -> None:
    """`reserve` may not run out of memory half-way; what gives memory back, or shuts a sale, must run then."""
    first = LuaSource.read(name).text.decode().splitlines()[0]
    assert first == (f"#!lua flags={FLAGS[name]}" if FLAGS[name] else "#!lua")


@every_script
def test_script_names_keys_only_from_keys(name: str) -> None:
    _, body = parts(name)
    text = "\n".join(body)
    assert not re.search(r"\b(SCAN|HSCAN|XTRIM|MAXLEN|EXPIRE|PEXPIRE|FLUSHALL)\b|'KEYS'", text)
    from_keys = {n for n, v in bindings(body) if v.startswith("KEYS[")}
    calls = re.findall(r"redis\.p?call\('(\w+)'(?:, ([^,)]+))?", text)
    assert calls
    assert len(calls) == len(re.findall(r"redis\.p?call", text))
    for command, key in calls:
        if command not in NO_KEY:
            assert key in from_keys or re.fullmatch(r"KEYS\[\d+\]", key), f"{command} {key}"


@every_script
def test_script_header_has_every_part(name: str) -> None:
    header, _ = parts(name)
    text = "\n".join(header)
    assert header[1].startswith(f"-- {name}: ")
    for part in ("Guarantee  G", "Cost       O(", "Caller     lua/", "Returns "):
        assert f"-- {part}" in text


@every_script
async def test_script_loads_and_has_the_sha_that_the_store_gives_it(store: SharedConnection, name: str) -> None:
    source = LuaSource.read(name)
    assert await tell(store, "SCRIPT", "LOAD", source.text) == source.sha
    assert await tell(store, "SCRIPT", "EXISTS", source.sha) == [1]


def test_every_script_with_codes_has_its_enum() -> None:
    assert {n for n in script_names() if LuaSource.read(n).codes} == set(CODES)
    assert set(FLAGS) == set(script_names())
