"""The plan of a rush: repeatable, front-loaded, within the limits, and with the mix that was asked for."""

import json
from collections import Counter, defaultdict
from typing import Any

import msgspec
import pytest

from loadtest.campaign import Campaign, Sku
from loadtest.plan import (
    GREEDY_WITHIN_S,
    REPEAT_WITHIN_S,
    Kind,
    Mix,
    Planned,
    arrival_s,
    build_plan,
    client_ip,
)

CAMPAIGN = Campaign("sale", (Sku("red", price=100), Sku("blue", price=300)), limits={"buyer": 2})
HONEST = Mix(repeat=0, greedy=0, malformed=0, unknown_sku=0)


def plan_of(campaign: Campaign = CAMPAIGN, buyers: int = 4_000, **settings: Any) -> list[Planned]:
    return build_plan(campaign, buyers, **{"spread_s": 2.0, "seed": 7, "run_id": "run", **settings})


def body_of(planned: Planned) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(planned.wire.partition(b"\r\n\r\n")[2])
    return found


def baskets(plan: list[Planned]) -> Counter[tuple[tuple[str, int], ...]]:
    return Counter(tuple(sorted((i["sku"], i["quantity"]) for i in body_of(p)["items"])) for p in plan)


def test_plan_repeats_with_its_seed_and_differs_with_run_or_seed() -> None:
    assert plan_of() == plan_of()
    assert plan_of(seed=8) != plan_of()
    assert not {p.key for p in plan_of(run_id="other")} & {p.key for p in plan_of() if p.key}


def test_plan_is_sorted_and_the_crowd_comes_early() -> None:
    plan = plan_of(mix=HONEST)
    due = [p.due_s for p in plan]
    assert due == sorted(due)
    assert due[0] >= 0
    assert due[-1] <= 2.0
    assert 0.58 < sum(d < 0.5 for d in due) / len(due) < 0.70
    assert arrival_s(1.0, 2.0) == pytest.approx(2.0)


def test_plan_has_the_mix_asked_for() -> None:
    plan = plan_of(buyers=20_000)
    buyers: defaultdict[str, set[Kind]] = defaultdict(set)
    for p in plan:
        buyers[p.buyer_id].add(p.kind)
    shares = {kind: sum(kind in kinds for kinds in buyers.values()) / 20_000 for kind in Kind}
    assert len(buyers) == 20_000
    assert shares[Kind.REPEAT] == pytest.approx(0.10, abs=0.01)
    assert shares[Kind.GREEDY] == pytest.approx(0.05, abs=0.01)
    assert shares[Kind.MALFORMED] == pytest.approx(0.01, abs=0.004)
    assert shares[Kind.UNKNOWN_SKU] == pytest.approx(0.01, abs=0.004)


def test_plan_repeats_a_click_with_the_same_bytes_soon_after() -> None:
    plan = plan_of()
    first = {p.key: p for p in plan if p.kind is Kind.ORDINARY}
    again = [p for p in plan if p.kind is Kind.REPEAT]
    assert again
    for p in again:
        assert p.wire == first[p.key].wire
        assert 0 <= p.due_s - first[p.key].due_s <= REPEAT_WITHIN_S
    assert set(Counter(p.key for p in again).values()) == {1, 2, 3}


def test_plan_greedy_buyers_ask_again_with_new_keys() -> None:
    plan = plan_of()
    first = {p.buyer_id: p for p in plan if p.kind is Kind.ORDINARY}
    greedy = [p for p in plan if p.kind is Kind.GREEDY]
    assert set(Counter(p.buyer_id for p in greedy).values()) == {3}
    assert len({p.key for p in greedy} | {p.key for p in first.values()}) == len(greedy) + len(first)
    for p in greedy:
        assert [i["quantity"] for i in body_of(p)["items"]] == [2]
        assert 0 <= p.due_s - first[p.buyer_id].due_s <= GREEDY_WITHIN_S


def test_plan_ordinary_baskets_are_one_or_two_units() -> None:
    found = baskets(plan_of(mix=HONEST))
    assert set(found) == {
        (("red", 1),),
        (("blue", 1),),
        (("red", 2),),
        (("blue", 2),),
        (("blue", 1), ("red", 1)),
    }
    two = sum(n for basket, n in found.items() if sum(q for _, q in basket) == 2)
    assert two / 4_000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("limits", "skus", "allowed"),
    [
        ({"buyer": 1}, 2, {(1,)}),
        ({"device": 1}, 2, {(1,)}),
        ({"buyer": 2, "buyer_sku": 1}, 2, {(1,), (1, 1)}),
        ({"buyer": 2, "buyer_sku": 1}, 1, {(1,)}),
        ({"buyer": None}, 1, {(1,), (2,)}),
    ],
)
def test_plan_ordinary_baskets_keep_to_the_limits(
    limits: dict[str, int | None], skus: int, allowed: set[tuple[int, ...]]
) -> None:
    campaign = Campaign("sale", CAMPAIGN.skus[:skus], limits=limits)
    found = baskets(plan_of(campaign, buyers=500, mix=HONEST))
    assert {tuple(q for _, q in basket) for basket in found} == allowed


def test_plan_wants_skus_evenly_or_by_price() -> None:
    def share_of_blue(by_price: bool) -> float:
        found = baskets(plan_of(Campaign("s", CAMPAIGN.skus, limits={"buyer": 1}), mix=HONEST, by_price=by_price))
        return found[(("blue", 1),)] / 4_000

    assert share_of_blue(False) == pytest.approx(0.5, abs=0.04)
    assert share_of_blue(True) == pytest.approx(0.75, abs=0.04)


def test_plan_malformed_requests_are_wrong_and_frame_themselves_well() -> None:
    wires = [p.wire for p in plan_of(mix=Mix(repeat=0, greedy=0, malformed=1, unknown_sku=0))]
    good = 0
    for wire in wires:
        head, _, body = wire.partition(b"\r\n\r\n")
        assert b"content-length: %d" % len(body) in head
        if b"idempotency-key" not in head:
            good += 1
            assert msgspec.json.decode(body)["items"]  # only the key is missing
    assert 0 < good < len(wires) / 5


def test_client_addresses_are_distinct() -> None:
    assert len({client_ip("run", n) for n in range(100_000)}) == 100_000


@pytest.mark.parametrize("shares", [{"repeat": -0.1}, {"repeat": 0.9, "greedy": 0.2}])
def test_mix_refuses_shares_that_are_none(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Mix(**shares)
