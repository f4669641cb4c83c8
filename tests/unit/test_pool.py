"""What is said of a ledger that is away."""

import pytest

from core.errors import LedgerUnavailable
from core.ledger.pool import ask


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (TimeoutError(), "the ledger cannot be used: no answer in time"),
        (ConnectionResetError("gone"), "the ledger cannot be used: ConnectionResetError: gone"),
    ],
)
async def test_refusal_says_why_even_if_the_fault_itself_does_not(fault: Exception, words: str) -> None:
    async def call() -> None:
        raise fault

    with pytest.raises(LedgerUnavailable) as raised:
        await ask(call)
    assert raised.value.detail == words
