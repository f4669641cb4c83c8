"""All metrics of a deployment in one exposition: each living process is asked, and its lines are told apart by labels.

Which processes there are the signs of life say (lua/registry.py). Bounded in time and size: a process that does not
answer costs DEAD_S once for all of them, and shows as `rushgate_process_up 0`.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from core.metrics_table import GATHERED
from lua.connection import Exchange
from lua.registry import Sign, read_signs

DEAD_S = 1.0  # longest wait for one process; they are asked side by side
MAX_BYTES = 4_194_304  # of one answer
AT_ONCE = 64
UP = GATHERED[0]


class Told(NamedTuple):
    """What one process told; '' = nothing in time. `gone`: nobody listens at its address any more."""

    sign: Sign
    text: str
    gone: bool = False


async def gather(exchange: Exchange) -> bytes:
    """The exposition of all living processes. Raises StoreUnavailable: nobody can say which these are."""
    signs, _ = await read_signs(exchange)
    return merged(await ask_all(signs))


async def ask_all(signs: Iterable[Sign]) -> list[Told]:
    """What each of these processes tells now, in their order. Those that serve no metrics are left out."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(sign: Sign) -> Told:
        async with room:
            text = await scrape(sign.metrics)
            return Told(sign, text or "", text is None)

    return list(await asyncio.gather(*(one(sign) for sign in signs if sign.metrics)))


async def scrape(url: str) -> str | None:
    """The exposition at `url`; '' if it cannot be had within DEAD_S, or is none; None if connections are refused."""
    parts = urlsplit(url)
    writer: asyncio.StreamWriter | None = None
    try:
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            return ""
        async with asyncio.timeout(DEAD_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
            answer = bytearray()
            while part := await reader.read(65_536):  # the server closes the connection behind its answer
                answer += part
                if len(answer) > MAX_BYTES:
                    return ""
    except ConnectionRefusedError:
        return None
    except (OSError, TimeoutError, ValueError):  # ValueError: a port that is no number
        return ""
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return body.decode("utf-8", "replace") if head.startswith(b"HTTP/1.1 200 ") else ""


def merged(told: Sequence[Told]) -> bytes:
    """One exposition of all: the lines of a metric stand together, each with `process` and `kind`."""
    families: dict[str, list[str]] = {}  # HELP and TYPE first, as the first process told them
    heads: dict[str, list[str]] = {}
    up = families.setdefault(UP.name, [])
    heads[UP.name] = [f"# HELP {UP.name} {UP.help}", f"# TYPE {UP.name} {UP.kind}"]
    for sign, text, _ in told:
        labels = f'process="{_escaped(sign.id)}",kind="{_escaped(sign.kind)}"'
        up.append(f"{UP.name}{{{labels}}} {1 if text else 0}")
        name = ""
        fresh = False
        for line in text.split("\n"):
            if line.startswith("# "):
                _, what, name, *_ = line.split(" ", 3)
                if what == "HELP":
                    fresh = name not in heads
                    heads.setdefault(name, [])
                    families.setdefault(name, [])
                if fresh:
                    heads[name].append(line)
            elif line and name:
                families[name].append(_with(line, labels))
    lines = [line for name, found in families.items() for line in (*heads[name], *found)]
    return ("\n".join(lines) + "\n").encode()


def _with(line: str, labels: str) -> str:
    """A line with more labels. A name has no brace and no space."""
    end = len(line)
    for n, char in enumerate(line):
        if char in "{ ":
            end = n
            break
    name, rest = line[:end], line[end:]
    if rest.startswith("{") and not rest.startswith("{}"):
        return f"{name}{{{labels},{rest[1:]}"
    return f"{name}{{{labels}}}{rest.removeprefix('{}')}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def targets(signs: Iterable[Sign]) -> bytes:
    """The processes as Prometheus' HTTP service discovery wants them, with the labels that `gather` gives."""
    found = []
    for sign in signs:
        if sign.metrics:
            parts = urlsplit(sign.metrics)
            labels = {"process": sign.id, "kind": sign.kind, "__metrics_path__": parts.path or "/"}
            found.append({"targets": [parts.netloc], "labels": labels})
    return msgspec.json.encode(found)
