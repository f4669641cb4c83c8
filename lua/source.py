"""Reads the scripts: their text, its SHA-1, and what their headers promise. Source: the *.lua files beside this one."""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class LuaSource:
    """One script: `name` as its file without the ending, `text` as the store gets it."""

    name: str
    text: bytes
    sha: bytes

    @classmethod
    @cache
    def read(cls, name: str) -> "LuaSource":
        """The script `lua/<name>.lua`, read once per process."""
        text = (resources.files("lua") / f"{name}.lua").read_bytes()
        return cls(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())

    @property
    def writes(self) -> bool:
        """False: the script declares that it changes nothing."""
        return b"no-writes" not in self.text[: self.text.index(b"\n")]

    @property
    def codes(self) -> dict[str, int]:
        """The codes that the header lists, e.g. {"DONE": 0}."""
        rows = re.findall(rb"^-- +(\d+) ([A-Z_]+)  ", self.text, re.MULTILINE)
        return {name.decode(): int(code) for code, name in rows}

    @property
    def header_keys(self) -> int:
        """How many KEYS the header declares."""
        return len(re.findall(rb"^-- KEYS\[\d+\]", self.text, re.MULTILINE))


def script_names() -> list[str]:
    """The names of all scripts, sorted."""
    return sorted(p.name[:-4] for p in resources.files("lua").iterdir() if p.name.endswith(".lua"))
