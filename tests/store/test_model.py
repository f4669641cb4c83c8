"""The scripts against a plain Python model of a campaign, over random histories, on a real store."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from core.wire import decode_held, read_entry
from lua.connection import SharedConnection
from lua.reserve import Ask, ReserveCode
from lua.scripts import ChangeCode, RestockCode, Scripts
from tests.conftest import Services
from tests.support import StoreSale, contents, reading, tell

C = ReserveCode
SKUS = ("red", "blue", "green")
LIMITS = ("buyer", "buyer_sku", "ip", "device")

small = st.integers(1, 3)
limit = st.none() | st.integers(1, 6)
some_shares = st.dictionaries(st.sampled_from(["app", "web"]), st.integers(1, 8))
line = st.tuples(st.sampled_from((*SKUS, "none")), small)
request = st.fixed_dictionaries(
    {
        "buyer": st.sampled_from(["b1", "b2", "b3"]),
        "key": st.sampled_from([f"k{n}" for n in range(12)]),
        "ip": st.sampled_from(["", "10.0.0.1", "10.0.0.2"]),
        "device": st.sampled_from(["", "d1", "d2"]),
        "channel": st.sampled_from(["app", "web", "shop"]),
        "lines": st.lists(line, min_size=1, max_size=3),
    }
)


class Model:
    """One campaign on one shard, one request after another, as the words of the contract have it."""

    def __init__(self, stock: dict[str, int], limits: dict[str, int | None], shares: dict[str, int] | None) -> None:
        self.state, self.version = "open", 1
        self.limits = limits
        self.shares = shares  # None: channels are not counted
        self.left, self.held, self.allocation = dict(stock), dict.fromkeys(stock, 0), dict(stock)
        self.used: Counter[str] = Counter()
        self.accepted: dict[bytes, Ask] = {}
        self.moves: set[str] = set()
        self.entries: list[list[bytes]] = []

    def decide(self, ask: Ask) -> tuple[ReserveCode, bytes, str]:
        """Code, order id, detail."""
        first = self.accepted.get(ask.field)
        if first is not None:
            if first.fingerprint == ask.fingerprint:
                return C.REPLAYED, first.order_id, ""
            return C.KEY_REUSED, b"", ""
        if self.state != "open":
            return (C.PAUSED if self.state == "paused" else C.CLOSED), b"", ""
        wanted: dict[str, int] = {}
        for sku, quantity in zip(ask.lines[::2], ask.lines[1::2], strict=True):
            wanted[str(sku)] = wanted.get(str(sku), 0) + int(quantity)
        total = sum(wanted.values())
        counts = {"buyer": {f"b:{ask.buyer_id}": total}}
        counts["buyer_sku"] = {f"s:{ask.buyer_id} {sku}": q for sku, q in wanted.items()}
        counts["ip"] = {f"i:{ask.client_ip}": total} if ask.client_ip else {}
        counts["device"] = {f"d:{ask.device_id}": total} if ask.device_id else {}
        for name in LIMITS:
            bound = self.limits[name]
            if bound is not None and any(self.used[c] + q > bound for c, q in counts[name].items()):
                return C.OVER_LIMIT, b"", name
        sold = f"c:{decode_held(ask.held).channel}"
        if self.shares is not None and self.used[sold] + total > self.shares.get(sold[2:], 10_000):
            return C.OVER_LIMIT, b"", "channel_share"
        for sku, quantity in wanted.items():
            if sku not in self.left:
                return C.NO_SKU, b"", sku
            if self.left[sku] < quantity:
                return C.SOLD_OUT, b"", sku
        for sku, quantity in wanted.items():
            self.left[sku] -= quantity
            self.held[sku] += quantity
        for name in LIMITS:
            if name == "buyer" or self.limits[name] is not None:
                self.used.update(counts[name])
        if self.shares is not None:
            self.used[sold] += total
        self.accepted[ask.field] = ask
        return C.ACCEPTED, ask.order_id, ""


class CampaignMachine(RuleBasedStateMachine):
    """Drives store and model by the same steps; they must answer and stand alike after each."""

    loop: asyncio.AbstractEventLoop
    store: SharedConnection

    def do(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    @initialize(
        stock=st.fixed_dictionaries({sku: st.integers(0, 6) for sku in SKUS}),
        limits=st.fixed_dictionaries(dict.fromkeys(LIMITS, limit)),
        shares=st.none() | some_shares,
    )
    def open(self, stock: dict[str, int], limits: dict[str, int | None], shares: dict[str, int] | None) -> None:
        self.do(tell(self.store, "FLUSHALL"))
        fields = {f"limit_{name}": "" if bound is None else bound for name, bound in limits.items()}
        if shares is not None:
            fields |= {"count_channel": 1, "shares": json.dumps(shares)}
        self.sale = self.do(StoreSale.open(self.store, stock, lease_ms=0, **fields))
        self.scripts = Scripts(self.store)
        self.model = Model(stock, limits, shares)

    @rule(requests=st.lists(request, min_size=1, max_size=8))
    def reserve(self, requests: list[dict[str, Any]]) -> None:
        asks = [
            self.sale.ask(r["buyer"], *r["lines"], key=r["key"], ip=r["ip"], device=r["device"], channel=r["channel"])
            for r in requests
        ]
        answers = self.do(self.sale.reserve(self.store, *asks))
        expected = [self.model.decide(ask) for ask in asks]
        assert [(o.code, o.order_id, o.detail) for o in answers.outcomes] == expected
        assert answers.version == self.model.version
        taken = [ask.order_id for ask, (code, *_) in zip(asks, expected, strict=True) if code is C.ACCEPTED]
        if taken:
            self.model.entries.append(taken)
        # A SKU with a lease has nothing left now, as units only go down within a batch.
        assert all(self.model.left[lease.sku] == 0 and lease.ms == 0 for lease in answers.leases)

    @rule(
        move=st.sampled_from([f"m{n}" for n in range(8)]),
        sku=st.sampled_from((*SKUS, "none")),
        units=st.integers(-4, 4).filter(bool),
    )
    def restock(self, move: str, sku: str, units: int) -> None:
        model = self.model
        if sku not in model.left:
            expected = RestockCode.UNKNOWN, 0
        elif move in model.moves:
            expected = RestockCode.REPEATED, model.left[sku]
        elif model.left[sku] + units < 0:
            expected = RestockCode.TOO_FEW, model.left[sku]
        else:
            model.moves.add(move)
            model.left[sku] += units
            model.allocation[sku] += units
            expected = RestockCode.DONE, model.left[sku]
        assert self.do(self.scripts.restock(self.sale.keys, 1, move, sku, units)) == expected

    @rule(
        state=st.sampled_from(["open", "open", "open", "paused", "closed"]),
        step=st.integers(-1, 2),
        changed=st.sampled_from(LIMITS),
        bound=limit,
        shares=some_shares,
    )
    def change(self, state: str, step: int, changed: str, bound: int | None, shares: dict[str, int]) -> None:
        version = self.model.version + step
        fields: dict[str, str | int] = {"state": state}
        limits = dict(self.model.limits)
        # A limit that counted from the start may move; one that did not would count from now on.
        if limits[changed] is not None and bound is not None:
            limits[changed] = fields[f"limit_{changed}"] = bound
        if self.model.shares is not None:
            fields["shares"] = json.dumps(shares)
        code = self.do(self.scripts.change(self.sale.keys, 1, version, fields))
        assert code is (ChangeCode.DONE if step > 0 else ChangeCode.REPEATED)
        if step > 0:
            self.model.state, self.model.version, self.model.limits = state, version, limits
            self.model.shares = None if self.model.shares is None else shares

    @rule()
    def flush_scripts(self) -> None:
        self.do(tell(self.store, "SCRIPT", "FLUSH"))

    @invariant()
    def store_and_model_stand_alike(self) -> None:
        if not hasattr(self, "model"):
            return
        model, sale = self.model, self.sale
        found = self.do(reading(self.store, sale))
        assert (found.left, found.held, found.allocation) == (model.left, model.held, model.allocation)
        for sku in SKUS:
            assert found.left[sku] >= 0
            assert found.allocation[sku] == found.left[sku] + found.held[sku] + found.sold[sku]
        assert found.requests == found.holds == found.seq == len(model.accepted)
        everything = self.do(contents(self.store))
        used = everything.get(sale.keys.used, {})
        assert {name.decode(): int(units) for name, units in used.items()} == dict(model.used)
        entries = [
            [order_id for order_id, _ in read_entry(flat)[1]] for _, flat in everything.get(sale.keys.intake, [])
        ]
        assert entries == model.entries
        assert sum(map(len, entries)) == found.seq


@pytest.mark.timeout(400)  # a failing history takes long to be made short
def test_reserve_agrees_with_the_model_over_random_histories(services: Services) -> None:
    loop = asyncio.new_event_loop()
    store = SharedConnection(services.store_url, "fsync", 10.0, "test")

    class Machine(CampaignMachine):
        pass

    Machine.loop, Machine.store = loop, store
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=25,
                deadline=None,
                derandomize=True,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(store.close())
        loop.close()
