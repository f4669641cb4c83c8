"""The ledger worker: drains the intake streams into the ledger. Any number of them share the work.

At least once, and every effect idempotent: entries are acknowledged and deleted only after their commit; what a dead
worker left is claimed by a living one; a worker that wakes up late writes the same orders again, which changes nothing.

While the ledger writes one batch the worker reads the next one and acknowledges the last one: one transaction is under
way at most. Without a backlog a short pause passes between two reads: few large transactions cost less than many small.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import RedisError, ResponseError

from core.errors import LedgerUnavailable, StoreUnavailable
from core.flood import SampledLog
from core.tracing import Tracer
from core.wire import log_ids
from lua.connection import Command, Reply, StoreConnection
from lua.keys import intake_key
from lua.source import LuaSource
from workers.copies import Copies, copies
from workers.entries import DeadLetter, Entry, OrderRow, read_entry
from workers.idle import Idle
from workers.pulse import Pulse
from workers.traces import BatchWrite
from workers.writer import LedgerWriter

logger = logging.getLogger("rushgate.ledger")
# Each one is in dead_letters; an entry may bring hundreds.
set_aside = SampledLog(logger, logging.ERROR, "order set aside", burst=5)

GROUP = "ledger"
BLOCK_MS = 500  # longest wait for new entries, so that a stop and a claim are never far
CLAIM_ENTRIES = 16  # of each stream at once
MAX_ENTRIES = 128  # of each stream at once; how many it is follows the orders that they bring
MAX_ACKED = 1_000  # entries in one call of ack
COPIED_ORDERS = 200  # a batch of fewer is one statement: COPY costs six round trips more
PAUSE_S = (0.05, 2.0)  # between tries while store or ledger is away: first, longest


class _Batch(NamedTuple):
    """Entries whose orders a transaction writes."""

    entries: list[Entry]
    letters: list[DeadLetter]
    written: asyncio.Task[tuple[int, int]]


class LedgerWorker:
    """One consumer of the group `ledger` on all shards' streams."""

    def __init__(
        self, connection: StoreConnection, writer: LedgerWriter, shards: Sequence[int], name: str,
        drain_orders: int, claim_idle_ms: int, drain_pause_ms: int = 0, tracer: Tracer | None = None,
    ) -> None:  # fmt: skip
        """`name` is the consumer's, unlike any other living worker's."""
        self._connection = connection
        self.writer = writer
        self._shards = list(shards)
        self._keys = [intake_key(s) for s in self._shards]
        self._shard_of = dict(zip(self._keys, self._shards, strict=True))
        self._name = name
        self.drain_orders = drain_orders
        self._claim_idle_ms = claim_idle_ms
        self._pause_s = drain_pause_ms / 1000
        self._stopping = asyncio.Event()
        self._groups_exist = False
        self._next_claim_s = 0.0
        self._read_at_s = 0.0
        self._entries_at_once = 8
        self._under_way: _Batch | None = None
        self._backlog = False  # the last read brought all that it asked for
        self.written = 0  # orders, by this worker
        self.dead = 0  # letters, by this worker
        self.claimed = 0  # entries taken over from others
        self.idle = Idle()
        self.pulse = Pulse()
        self._tracer = tracer

    def stop(self) -> None:
        """The run ends after the batch in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Works until `stop`, through every absence of store and ledger. What it has read by then is finished."""
        try:
            await self._drain()
        finally:
            if self._under_way is not None:  # only if this is cancelled, or dies of a fault of ours
                self._under_way.written.cancel()
        await self._leave()

    async def _drain(self) -> None:
        """Rounds until `stop`; then nothing is under way."""
        pause_s = PAUSE_S[0]
        waits_since_s: float | None = None
        while not self._stopping.is_set():
            try:
                await self._pass_pause()
                await self._round()
                self.pulse.beat()
                pause_s = PAUSE_S[0]
                if waits_since_s is not None:
                    logger.info("drain goes on", extra={"waited_s": round(time.monotonic() - waits_since_s, 1)})
                    waits_since_s = None
            except (StoreUnavailable, LedgerUnavailable) as exc:
                # What was read and not acknowledged stays pending under our name: `_own_pending` brings it back.
                await self._give_up()
                self._groups_exist = False
                if waits_since_s is None:
                    waits_since_s = time.monotonic()
                logger.warning("drain waits", extra={"why": str(exc), "pause_s": pause_s})
                await self._sleep(pause_s)
                pause_s = min(pause_s * 2, PAUSE_S[1])
        try:
            await self._settle()
        except (StoreUnavailable, LedgerUnavailable) as exc:
            logger.warning("left with work in hand", extra={"why": str(exc)})

    async def step(self) -> int:
        """One round: read, or claim, write, acknowledge. Returns the entries handled.

        Raises: StoreUnavailable, LedgerUnavailable; nothing is lost by it.
        """
        handled = await self._round()
        await self._settle()
        return handled

    async def _round(self) -> int:
        """As `step`, but the last batch may be under way at its end."""
        if not self._groups_exist:
            await self._make_groups()
            await self._own_pending()
            self._groups_exist = True
        handled = 0
        loop = asyncio.get_running_loop()
        if loop.time() >= self._next_claim_s:
            self._next_claim_s = loop.time() + max(0.1, self._claim_idle_ms / 2000)
            handled += await self._claim()
        self._read_at_s = loop.time()
        entries = await self._read_group(b">")
        if entries:
            self._adapt(len(entries), await self._write(entries, new=True))
        else:
            await self._settle()
        return handled + len(entries)

    async def _pass_pause(self) -> None:
        """Without a backlog the next read is a pause after the last one; what is in hand does not wait for it."""
        if self._backlog or not self._pause_s or self._under_way is None:
            return
        await self._settle()
        await self._sleep(self._read_at_s + self._pause_s - asyncio.get_running_loop().time())

    async def _sleep(self, seconds: float) -> None:
        """Sleeps, but not beyond a stop."""
        if seconds > 0:
            with self.idle.waiting(), contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _make_groups(self) -> None:
        """The group exists on every stream, from the first entry on."""
        commands: list[Command] = [("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM") for key in self._keys]
        for reply in await self._connection.exchange(commands):
            if isinstance(reply, RedisError) and not str(reply).startswith("BUSYGROUP"):
                raise StoreUnavailable(f"no group: {reply}")

    async def _own_pending(self) -> None:
        """What this worker read before a break is finished."""
        while True:
            entries = await self._read_group(b"0")
            if not entries:
                return
            await self._write(entries, new=False)
            await self._settle()

    async def _read_group(self, after: bytes) -> list[Entry]:
        command: list[bytes | str | int] = [
            "XREADGROUP",
            "GROUP",
            GROUP,
            self._name,
            "COUNT",
            self._entries_at_once,
        ]
        waits = after == b">" and self._under_way is None
        if waits:
            command += ["BLOCK", BLOCK_MS]
        command += ["STREAMS", *self._keys, *[after] * len(self._keys)]
        with self.idle.waiting() if waits else contextlib.nullcontext():
            [reply] = await self._connection.exchange([command])
        if isinstance(reply, ResponseError) and "NOGROUP" in str(reply):
            self._groups_exist = False  # somebody emptied the store; make them again and go on
            return []
        self._raise_for(reply)
        return [
            # An entry deleted while it was pending comes without fields: it is done, but for the acknowledgement.
            Entry(self._shard_of[key], entry_id, fields or [])
            for key, entries in reply or []
            for entry_id, fields in entries
        ]

    async def _claim(self) -> int:
        """Entries that lie with a silent worker are taken over and finished."""
        total = 0
        starts = dict.fromkeys(self._keys, b"0-0")
        while starts:
            keys = list(starts)
            replies = await self._connection.exchange([
                ("XAUTOCLAIM", key, GROUP, self._name, self._claim_idle_ms, starts[key], "COUNT", CLAIM_ENTRIES)
                for key in keys
            ])  # fmt: skip
            entries = []
            for key, reply in zip(keys, replies, strict=True):
                if isinstance(reply, ResponseError) and "NOGROUP" in str(reply):
                    self._groups_exist = False
                    del starts[key]
                    continue
                self._raise_for(reply)
                entries += [Entry(self._shard_of[key], i, fields or []) for i, fields in reply[1] if fields]
                starts[key] = reply[0]
                if reply[0] == b"0-0":
                    del starts[key]
            await self._write(entries, new=False)
            total += len(entries)
        await self._settle()
        self.claimed += total
        return total

    async def _write(self, entries: list[Entry], *, new: bool) -> int:
        """The entries' orders are handed to the ledger, the last ones perhaps not committed yet. Returns how many.

        `new`: nobody has read these entries before.
        """
        if entries:
            # An order that no replica has yet may be gone after a failover, its units sold again.
            await self._connection.confirm(self._keys[0])
        batch: list[Entry] = []
        rows: list[OrderRow] = []
        letters: list[DeadLetter] = []
        orders = 0
        for entry in entries:
            batch.append(entry)
            if entry.fields:
                more, bad = read_entry(entry)
                rows += more
                letters += bad
                orders += len(more) + len(bad)
                await asyncio.sleep(0)  # the transaction that is under way goes on
            if len(rows) >= self.drain_orders:
                await self._hand_over(batch, rows, letters, new)
                batch, rows, letters = [], [], []
        if batch:
            await self._hand_over(batch, rows, letters, new)
        return orders

    async def _hand_over(self, batch: list[Entry], rows: list[OrderRow], letters: list[DeadLetter], new: bool) -> None:
        """The batch's transaction is under way, the one before it committed and its entries acknowledged."""
        made = copies(rows) if new and len(rows) >= COPIED_ORDERS else None
        before = await self._committed()
        self._under_way = _Batch(batch, letters, asyncio.create_task(self._written(rows, letters, made)))
        if before is not None:
            await self._acknowledge(before)

    async def _written(self, rows: list[OrderRow], letters: list[DeadLetter], made: Copies | None) -> tuple[int, int]:
        """As `LedgerWriter.write`."""
        if self._tracer is None:
            return await self.writer.write(rows, letters, made)
        batch = BatchWrite(self._tracer, rows)
        try:
            written, dead = await self.writer.write(rows, letters, made)
        except LedgerUnavailable as exc:
            batch.over(0, 0, exc.detail)
            raise
        batch.over(written, dead)
        return written, dead

    async def _settle(self) -> None:
        """Nothing is under way: what was is committed, its entries are off the streams."""
        batch = await self._committed()
        if batch is not None:
            await self._acknowledge(batch)

    async def _committed(self) -> _Batch | None:
        """The batch that was under way, committed. Raises: LedgerUnavailable; it is not under way any more."""
        batch, self._under_way = self._under_way, None
        if batch is not None:
            written, dead = await batch.written
            self.written += written
            self.dead += dead
        return batch

    async def _give_up(self) -> None:
        """Nothing is under way; what was may be committed, and is not acknowledged."""
        try:
            await self._committed()
        except LedgerUnavailable as exc:
            logger.debug("batch lost with the ledger", extra={"why": str(exc)})

    def _adapt(self, entries: int, orders: int) -> None:
        """The next read brings about as many orders as a transaction wants: bounded memory, few small commits."""
        self._backlog = orders >= self.drain_orders or entries >= self._entries_at_once
        if orders > 2 * self.drain_orders:
            self._entries_at_once = max(1, self._entries_at_once // 2)
        elif orders < self.drain_orders and entries >= self._entries_at_once:
            self._entries_at_once = min(MAX_ENTRIES, self._entries_at_once * 2)

    async def _acknowledge(self, batch: _Batch) -> None:
        """The entries of a committed batch are off the streams, in one exchange for all shards."""
        for letter in batch.letters:
            fields: dict[str, str] = {"entry": letter.entry_id.decode(), "reason": letter.reason}
            if letter.order_id is not None:
                fields |= log_ids(letter.order_id, letter.payload)
            set_aside(letter.reason[:40], **fields)
        by_shard: dict[int, list[bytes]] = {}
        for entry in batch.entries:
            by_shard.setdefault(entry.shard, []).append(entry.entry_id)
        calls: list[Command] = [
            (1, intake_key(shard), GROUP, *ids[n : n + MAX_ACKED])
            for shard, ids in by_shard.items()
            for n in range(0, len(ids), MAX_ACKED)
        ]
        # Not confirmed by replicas: entries that a failover brings back are written again, which changes nothing.
        for reply in await self._connection.run(LuaSource.read("ack"), calls, confirm=False):
            self._raise_for(reply)

    async def _leave(self) -> None:
        """The consumer's name is off the groups if nothing is pending under it; then nobody needs to claim."""
        try:
            for key in self._keys:
                [pending] = await self._connection.exchange([("XPENDING", key, GROUP, "-", "+", 1, self._name)])
                if pending == []:
                    await self._connection.exchange([("XGROUP", "DELCONSUMER", key, GROUP, self._name)])
        except StoreUnavailable:
            logger.warning("left without a farewell")
        await self._connection.close()

    def _raise_for(self, reply: Reply) -> None:
        if isinstance(reply, RedisError):
            raise StoreUnavailable(f"the store answers {type(reply).__name__}: {reply}")
