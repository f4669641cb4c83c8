"""The draw of places: a permutation of 1 to N that a seed decides, told place by place.

A Feistel network over two coordinates whose product is N or little more; what falls outside goes round again. Its round
functions are keyed by the seed, so that without the seed nothing is known of a place, and with it anybody can check the
draw.
"""

import math
from functools import lru_cache
from hashlib import blake2b

ROUNDS = 8


def place(seed: str, count: int, number: int) -> int:
    """The place, 1 to `count`, that the draw gives to `number`, 1 to `count`: another one to each."""
    key = seed.encode()[:64]
    high, low = _sides(count)
    at = number - 1
    while True:
        left, right = divmod(at, low)
        for n in range(0, ROUNDS, 2):
            left = (left + _drawn(key, n, right)) % high
            right = (right + _drawn(key, n + 1, left)) % low
        at = left * low + right
        if at < count:
            return at + 1


@lru_cache(maxsize=1_024)
def _sides(count: int) -> tuple[int, int]:
    low = math.isqrt(count - 1) + 1 if count > 1 else 1
    return -(-count // low), low


def _drawn(key: bytes, n: int, value: int) -> int:
    return int.from_bytes(blake2b(b"%d %d" % (n, value), digest_size=8, key=key).digest(), "big")
