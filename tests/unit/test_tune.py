"""What `rushgate tune` reckons, on given figures. Whether it is true of a real spike tells `python -m bench sizing`."""

import argparse
import math
from pathlib import Path

import pytest

from core.errors import ConfigInvalid
from core.settings import Settings
from lua.registry import Sign
from ops import tune_command
from ops.cli import main
from ops.tune_assumptions import from_toml, to_toml
from ops.tune_measure import Snapshot, assumptions_of
from ops.tune_model import KINDS, STEADY, Assumptions, Machine, Partners, Stage, Target, advise, bounds, relay_rate
from ops.tune_probe import Gain, Steady

SAMPLE = Path(__file__).parents[2] / "deploy" / "sample" / "assumptions.toml"


def given(**values: object) -> Assumptions:
    """A ledger worker of 1,000 orders/s is the narrow place."""
    found = Assumptions(ledger=Stage(per_second=1_000.0, efficiency=0.8, cpu_us=7.0))
    for name, value in values.items():
        setattr(found, name, value)
    return found


def simulated_s(passes: float, target: Target) -> float:
    """When a spike that is there at once is cleared, 10 ms after 10 ms."""
    waits, at_s, step_s = target.spike, 0.0, 0.01
    while waits > 0:
        waits += (target.rate - passes) * step_s
        at_s += step_s
        assert at_s < 10_000
    return at_s


@pytest.mark.parametrize("target", [Target(500, 20_000, 10), Target(0, 30_000, 5), Target(3_000, 1, 60)])
def test_advised_workers_clear_the_spike_in_the_time_said_and_one_less_does_not(target: Target) -> None:
    assumed = given()
    advice = advise(assumed, target)
    assert advice.fits
    assert advice.clear_s is not None
    assert advice.clear_s <= target.clear_in_s * 1.001
    n = advice.processes["ledger"]
    assert simulated_s(assumed.ledger.of(n), target) == pytest.approx(advice.clear_s, rel=0.01, abs=0.02)
    fewer = assumed.ledger.of(n - 1)
    assert fewer < max(target.needed, target.rate / STEADY)


def test_rate_alone_leaves_every_process_some_room() -> None:
    assumed, target = given(), Target(1_700)
    advice = advise(assumed, target)
    for kind in KINDS:
        does = relay_rate(assumed, advice.processes[kind]) if kind == "relay" else assumed.stage(kind).of(
            advice.processes[kind])  # fmt: skip
        assert target.rate * assumed.per_order(kind) <= STEADY * does * 1.001
    assert assumed.ledger.of(2) > target.rate, "control: two hold the rate, and are busier than they should be"
    assert advice.processes["ledger"] == 3


def test_cores_that_are_the_bound_are_told_and_no_process_is_advised_beyond_them() -> None:
    assumed = given(machine=Machine(cores=2, others=0.5))
    most = 1.5e6 / assumed.cpu_us()
    advice = advise(assumed, Target(10 * most))
    assert not advice.fits
    assert advice.bounds[0].what == "the 2 cores of this machine"
    assert advice.reached == pytest.approx(most)
    assert assumed.ledger.of(advice.processes["ledger"] - 1) < most
    step = next(s for s in advice.steps if s.kind == "ledger")
    assert step.adds < 800
    assert "cores of this machine" in step.why
    words = "\n".join(tune_command.lines(advice, assumed, {}, None, []))
    assert "It cannot be done" in words
    assert "More processes do not help: the 2 cores of this machine are the bound" in " ".join(words.split())


def test_slow_partners_are_the_bound_of_relays_and_more_relays_help() -> None:
    assumed = given(partners=Partners(answer_ms=1_000.0, at_once=10, busiest_share=1.0))
    assumed.orders.messages_per_order = 1.0
    advice = advise(assumed, Target(40))
    assert advice.processes["relay"] == 5  # 10 messages a second each, at most four fifths busy
    assert "the partners' answers" in [b.what for b in bounds(assumed, advice.processes)]


def test_every_line_of_the_advice_fits_a_terminal() -> None:
    for target in (Target(5_000, 200_000, 60), Target(50_000_000, 200_000_000), Target(1)):
        told = tune_command.lines(advise(given(), target), given(), {}, None, [])
        assert max(map(len, told)) <= 80


def test_what_the_probe_measured_replaces_what_was_assumed() -> None:
    assumed, origins = given(), dict[str, str]()
    gain = Gain("ledger", 2, Steady(3_000, 1.0, 0.5, True), Steady(3_900, 1.0, 0.6, True))
    assert gain.share == pytest.approx(0.3)
    assert gain.efficiency == pytest.approx(0.6)
    tune_command.apply(assumed, origins, gain)
    assert assumed.ledger.of(2) == pytest.approx(3_000, rel=0.001)
    assert assumed.ledger.now == 2
    assert origins == {"ledger.per_second": "probed", "ledger.efficiency": "probed"}


def test_one_more_that_makes_it_slower_is_no_negative_efficiency() -> None:
    gain = Gain("ledger", 1, Steady(3_000, 1.0, 1.0, True), Steady(2_400, 1.0, 1.0, True))
    assert gain.share == pytest.approx(-0.2)
    assert gain.efficiency == 0


def snapshot(at_s: float, rate: float, busy: float, workers: int) -> Snapshot:
    """After `at_s` seconds of ledger workers that do `rate` each and one gateway that is asked as much and half."""
    ledgers = [
        Sign(id=f"ledger-{n}", kind="ledger", seen_at=int(at_s * 1000), busy=busy,
             more={"done": rate * at_s, "cpu": 0.1})
        for n in range(workers)
    ]  # fmt: skip
    asked = rate * workers * 1.5
    gateway = Sign(id="gateway-1", kind="gateway", seen_at=int(at_s * 1000), busy=0.4,
                   more={"done": asked * at_s, "accepted_per_s": rate * workers, "cpu": 0.4})  # fmt: skip
    return Snapshot(int(at_s * 1000), {s.id: s for s in (*ledgers, gateway)}, 0.0, 0.0, (0.0, 0.0))


def test_what_one_does_is_measured_from_its_rate_and_its_share_of_work() -> None:
    looks = [snapshot(t, 600, 0.5, 1) for t in range(1, 6)]
    found = assumptions_of(looks, Settings(store_url="redis://far:1/0", ledger_dsn="postgresql://far/rushgate"))
    assert found.assumptions.ledger.per_second == pytest.approx(1_200)
    assert found.assumptions.ledger.cpu_us == pytest.approx(0.1 / 600 * 1e6, rel=0.01)
    assert found.assumptions.gateway.per_second == pytest.approx(900 / 0.4)
    assert found.assumptions.orders.requests_per_order == pytest.approx(1.5)
    assert found.origins["ledger.per_second"] == "measured"
    assert found.assumptions.machine.cores == 0
    assert any("relay: too little to measure" in words for words in found.notes)


def test_workers_that_were_measured_together_do_together_what_was_measured() -> None:
    looks = [snapshot(t, 600, 1.0, 3) for t in range(1, 6)]
    found = assumptions_of(looks, Settings(store_url="redis://far:1/0", ledger_dsn="postgresql://far/rushgate"))
    assert found.assumptions.ledger.of(3) == pytest.approx(1_800, rel=0.001)
    assert found.assumptions.ledger.now == 3


def test_sample_file_is_what_print_assumptions_writes_and_is_read_back_alike(tmp_path: Path) -> None:
    assert SAMPLE.read_text("utf-8") == to_toml(Assumptions())
    found, origins = from_toml(SAMPLE)
    assert found == Assumptions()
    assert origins["ledger.per_second"] == "given"
    changed = given(machine=Machine(cores=8, others=1.25))
    path = tmp_path / "a.toml"
    path.write_text(to_toml(changed, {"ledger.per_second": "measured"}), "utf-8")
    assert from_toml(path)[0] == changed
    assert "per_second = 1000.0  # measured" in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[ledger]\nper_second = 0.0\n", "per_second"),
        ("[ledger]\nspeed = 1\n", "speed"),
        ("[ledgers]\nper_second = 1.0\n", "ledgers"),
        ("ledger = 3\n", "ledger"),
        ("[ledger\n", "cannot be read"),
        ("[orders]\nunpaid_share = nan\n", "unpaid_share"),
    ],
)
def test_wrong_file_of_assumptions_names_the_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigInvalid, match=words):
        from_toml(path)


def test_advice_from_a_file_needs_no_stack(capsys: pytest.CaptureFixture[str]) -> None:
    wish = ["tune", "--assume", str(SAMPLE), "--rate", "5000", "--spike", "200000", "--clear-in", "60"]
    assert main(wish) == 0
    said = capsys.readouterr().out
    assert "8,333 orders/s must pass every stage" in " ".join(said.split())
    assert "    rushgate scale gateway=1 ledger=1 relay=8 expiry=1\n\nThis is enough: 9,440 orders/s pass." in said
    assert main([*wish[:3], "--rate", "1e8"]) == 1
    assert "It cannot be done" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--rate", "-1"],
        ["--rate", "nan"],
        ["--rate", "1", "--clear-in", "0"],
        ["--rate", "1", "--probe"],
        ["--probe-load"],
        [],
    ],
)
def test_wrong_wish_is_wrong_usage(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--assume", str(SAMPLE), *wrong]) == 2
    assert capsys.readouterr().err.startswith("rushgate: --")


def test_nothing_is_advised_that_is_not_a_number() -> None:
    advice = advise(given(), Target(0.0))
    assert all(math.isfinite(b.orders_per_s) for b in advice.bounds)
    assert argparse.Namespace(**advice.processes) == argparse.Namespace(gateway=1, ledger=1, relay=1, expiry=1)
