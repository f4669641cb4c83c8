"""Orphans: holds whose order is nowhere. Put back into the intake if anybody was promised it, released if not, or if an
operator gave the order up.

How an order gets its sequence number back: it is one of those that are missing. Each is given in one transaction with
its journal row, one worker at a time, and for good: whoever comes later puts the order back under the same number.
"""

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from asyncpg.pgproto.pgproto import UUID

from core.ledger.pool import ask
from core.ledger.queries import query
from core.wire import TAIL_BYTES, EntryInvalid, Header, read_entry, read_hold, request_field, write_entry
from lua.connection import Command
from lua.scripts import MAX_ENDED
from workers.repairs import AGAIN_S, IDS, MOST, Mended, Part, Repairs

HOLDS = 500  # read at once
ENTRIES = 10  # of the intake read at once
NUMBERS = 100_000  # sequence numbers in one statement

_NUMBER = re.compile(r"number (\d+) of epoch (\d+)")


class Orphan(NamedTuple):
    """A hold without an order."""

    order_id: bytes
    accepted_ms: int
    pay_by_ms: int
    payload: bytes  # the order as the intake wants it, without its address
    promised: bool  # its request is on record


class Numbered(NamedTuple):
    """Orphans with the sequence numbers that they get, and how many go without."""

    orphans: list[tuple[Orphan, int]]
    short: int


class Before(NamedTuple):
    """What an orphan was given in an earlier repair that has not brought it into the ledger yet."""

    number: int
    age_s: float


class Orphans:
    """Finds and mends them. One per process."""

    def __init__(self, repairs: Repairs) -> None:
        self._repairs = repairs

    async def find(self, part: Part, unknown: set[bytes], found: Mended) -> None:
        """Of holds that the ledger did not know: those whose order is nowhere are put back, or released."""
        if not unknown:
            return
        [reading] = await self._repairs.scripts.audit([part.keys])
        seen, ranges = await self._intake(part, unknown)
        strays = await self._repairs.unknown(part.shard, sorted(unknown - seen))
        if not strays:
            return
        orphans = await self._fresh(part, strays, found)
        forgotten = [o.order_id for o in orphans if not o.promised]
        await self._repairs.release(part, forgotten[:MOST], "no order, and no request on record", found)
        promised = sorted((o for o in orphans if o.promised), key=lambda o: (o.accepted_ms, o.order_id))
        if promised:
            await self._requeue(part, promised, reading.seq, reading.base, ranges, found)

    async def drop(self, part: Part, given_up: set[bytes], found: Mended) -> None:
        """Of holds whose dead order was given up: those that stand still, by a `drop` that broke off, are released.

        Not if the order stands in the intake, or came into the ledger, in spite of that.
        """
        if not given_up:
            return
        seen, _ = await self._intake(part, given_up)
        ids = await self._repairs.dropped(part.shard, sorted(given_up - seen))
        standing = await self._repairs.standing(part, ids, found)
        await self._repairs.release(part, list(standing), "set aside and given up, and its hold stands", found)

    async def _intake(self, part: Part, wanted: set[bytes]) -> tuple[set[bytes], list[tuple[int, int]]]:
        """Which of these orders stand in the intake, and the numbers of this campaign's orders that do: first, last."""
        seen: set[bytes] = set()
        ranges: list[tuple[int, int]] = []
        start = b"-"
        while True:
            [page] = await self._repairs.tell(("XRANGE", part.keys.intake, start, "+", "COUNT", ENTRIES))
            for _, fields in page:
                try:
                    header, orders = read_entry(fields)
                except EntryInvalid:
                    # It stands there until a ledger worker has set it aside, whole.
                    seen.update(order_id for order_id in wanted if any(order_id in value for value in fields))
                    continue
                seen.update(wanted.intersection(order_id for order_id, _ in orders))
                if (header.campaign, header.epoch) == (part.known.campaign, part.known.epoch):
                    ranges.append((header.first_seq, header.first_seq + len(orders) - 1))
            if len(page) < ENTRIES:
                return seen, ranges
            start = b"(" + page[-1][0]
            await asyncio.sleep(0)  # a long backlog does not keep the process from hearing that it is to stop

    async def _fresh(self, part: Part, ids: Sequence[bytes], found: Mended) -> list[Orphan]:
        """The holds that still stand, and whether a request for each is on record."""
        orphans: list[Orphan] = []
        for n in range(0, len(ids), HOLDS):
            some = ids[n : n + HOLDS]
            standing: list[tuple[bytes, bytes, bytes]] = []  # order id, hold, field of its request
            for order_id, hold in (await self._repairs.standing(part, some, found)).items():
                held = read_hold(hold)[0]
                standing.append((order_id, hold, request_field(held.channel, held.request_key)))
            if not standing:
                continue
            [records] = await self._repairs.tell(("HMGET", part.keys.requests, *(key for _, _, key in standing)))
            for (order_id, hold, _), record in zip(standing, records, strict=True):
                _, accepted_ms, pay_by_ms = read_hold(hold)
                promised = record is not None and record[:16] == order_id
                orphans.append(Orphan(order_id, accepted_ms, pay_by_ms, hold[:-TAIL_BYTES], promised))
        return orphans

    async def _requeue(
        self, part: Part, orphans: list[Orphan], seq: int, base: int, ranges: list[tuple[int, int]], found: Mended
    ) -> None:
        """The orders, sorted, stand in the intake again, as far as each can have a number of its own.

        They may stand there twice: the ledger takes an order once.
        """
        numbered = await ask(lambda: self._number(part, orphans, seq, base, ranges))
        if numbered.short:
            found.wrong.append(
                f"shard {part.shard}: {numbered.short} accepted orders are nowhere, and fewer numbers are missing"
            )
        campaign, epoch = part.known.campaign, part.known.epoch
        for n in range(0, len(numbered.orphans), MAX_ENDED):
            some = numbered.orphans[n : n + MAX_ENDED]
            adds: list[Command] = []
            for orphan, number in some:
                header = Header(campaign, epoch, orphan.accepted_ms, orphan.pay_by_ms, number)
                fields = write_entry(header, [(orphan.order_id, orphan.payload)])
                adds.append(("XADD", part.keys.intake, "*", *fields))
            await self._repairs.tell(*adds)
            for orphan, number in some:
                await self._repairs.note(part, orphan.order_id, "requeued", _requeued(number, epoch), found)

    async def _number(
        self, part: Part, orphans: list[Orphan], seq: int, base: int, ranges: list[tuple[int, int]]
    ) -> Numbered:
        """Each orphan has a missing sequence number for good, journalled: the one that it was given before, else the
        next one. One worker at a time: of two such transactions the ledger undoes one, and it is tried again."""
        shard, campaign, epoch = part.shard, part.known.campaign, part.known.epoch
        firsts, lasts = [first for first, _ in ranges], [last for _, last in ranges]
        async with self._repairs.ledger.acquire() as connection, connection.transaction(isolation="serializable"):
            known = set()
            for n in range(0, len(orphans), IDS):
                ids = [UUID(o.order_id) for o in orphans[n : n + IDS]]
                known |= {r["order_id"].bytes for r in await connection.fetch(query("audit_known"), shard, ids)}
            missing = {
                row["seq"]
                for row in await connection.fetch(
                    query("missing_numbers"), shard, campaign, epoch, seq, firsts, lasts, NUMBERS, base
                )
            }
            before: dict[bytes, Before] = {}
            for row in await connection.fetch(query("open_requeues"), shard, campaign, NUMBERS):
                said = _NUMBER.search(row["why"])
                if said and int(said[2]) == epoch:
                    before[row["order_id"].bytes] = Before(int(said[1]), row["age_s"])
            numbered = _assign([o for o in orphans if o.order_id not in known], missing, before)
            fresh = [
                (UUID(o.order_id), _requeued(number, epoch))
                for o, number in numbered.orphans
                if not _is_on_record(before.get(o.order_id), number)
            ]
            if fresh:
                columns = (list(column) for column in zip(*fresh, strict=True))
                await connection.execute(query("put_repairs"), shard, "requeued", campaign, *columns)
        return numbered


def _requeued(number: int, epoch: int) -> str:
    """The journal's words; the number is read from them again."""
    return f"neither in the intake nor in the ledger; put back as number {number} of epoch {epoch}"


def _is_on_record(earlier: Before | None, number: int) -> bool:
    return earlier is not None and earlier.number == number and earlier.age_s < AGAIN_S


def _assign(orphans: Iterable[Orphan], missing: set[int], before: dict[bytes, Before]) -> Numbered:
    """Numbers for orphans, ascending, none twice. Who was given one before keeps it; if there are too few for the
    others, these get none."""
    taken = {earlier.number for earlier in before.values()}
    free = iter(sorted(missing - taken))
    own: set[int] = set()
    given: list[tuple[Orphan, int]] = []
    others: list[Orphan] = []
    for orphan in orphans:
        earlier = before.get(orphan.order_id)
        if earlier and earlier.number in missing and earlier.number not in own:
            own.add(earlier.number)
            given.append((orphan, earlier.number))
        else:
            others.append(orphan)
    if len(others) > len(missing - taken):
        return Numbered(given[:MOST], len(others))
    given += zip(others, free, strict=False)
    return Numbered(given[:MOST], 0)
