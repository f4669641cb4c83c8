"""The verdict on each answer of a partner: done, later, dead."""

import asyncio
from typing import cast
from uuid import UUID

import pytest

from core.signing import Signer
from tests.ledger.relay_support import SECRET
from workers.breaker import Breaker
from workers.destination import LONGEST_S, Destination, Letter, Verdict
from workers.http import Answer, Client, NoAnswer
from workers.outbox import Message

ORDER = UUID(int=7)


class Says:
    """A client whose partner answers so."""

    exchange_s = 1.0

    def __init__(self, answer: Answer | None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def post(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.asked.append((path, headers))
        if self.answer is None:
            raise NoAnswer("no answer within 1 s")
        return self.answer

    async def close(self) -> None:
        return None


async def verdict(says: Says, breaker: Breaker, attempts: int = 1, claimed_s: float = 1e12) -> Verdict:
    found: list[Verdict] = []
    one = Destination("payment", cast(Client, says), Signer([SECRET]), found.append, breaker=breaker)
    message = Message(ORDER, 1, attempts, 0, "sale", 1)  # type: ignore[arg-type]  # asyncpg's UUID is one of uuid's
    one.put([Letter(3, "payment", message, b"{}", claimed_s)])
    await asyncio.gather(*one._tasks)
    await one.stop()
    [only] = found
    return only


def answer(status: int, retry_after_s: float = 0.0) -> Answer:
    return Answer(status, retry_after_s, b"because")


@pytest.mark.parametrize(
    ("status", "what", "opens"),
    [
        (200, "done", False), (202, "done", False), (204, "done", False),
        (301, "later", True), (500, "later", True), (503, "later", True),
        (408, "later", True), (425, "later", True), (429, "later", True),
        (400, "dead", False), (409, "dead", False), (422, "dead", False),
        (401, "later", True), (403, "later", True), (404, "later", True),
    ],
)  # fmt: skip
async def test_status_decides(status: int, what: str, opens: bool) -> None:
    breaker = Breaker(failures=1)
    found = await verdict(says := Says(answer(status)), breaker)
    assert (found.what, breaker.is_open) == (what, opens)
    assert str(status) in (found.text or "")
    [(path, headers)] = says.asked
    assert (path, headers["webhook-id"]) == ("/payment/payment", f"msg_{ORDER.hex}_1_payment")


async def test_silence_is_tried_again_until_the_last_attempt() -> None:
    assert (await verdict(Says(None), Breaker(), 11)).what == "later"
    last = await verdict(Says(None), Breaker(), 12)
    assert (last.what, last.text) == ("dead", "attempt 12 was the last: no answer within 1 s")


async def test_retry_after_is_honoured_within_bounds() -> None:
    assert (await verdict(Says(answer(503, 7.0)), Breaker())).wait_s == 7.0
    assert (await verdict(Says(answer(429, 1e9)), Breaker())).wait_s == LONGEST_S
    assert (await verdict(Says(answer(503)), Breaker())).wait_s <= 0.2


async def test_open_breaker_sends_nothing_and_costs_no_attempt() -> None:
    breaker = Breaker(failures=1, draw=lambda: 1.0)
    breaker.failed()
    found = await verdict(says := Says(answer(200)), breaker)
    assert (found.what, found.text, says.asked) == ("later", None, [])
    assert 0 < found.wait_s <= 1.0


async def test_letter_whose_lease_is_about_to_end_is_not_sent() -> None:
    found = await verdict(says := Says(answer(200)), Breaker(), claimed_s=-1e12)
    assert (found.what, found.text, says.asked) == ("later", None, [])
