"""`rushgate tune`: how many processes hold a rate and clear a spike, and what then is the bottleneck.

It reckons (ops/tune_model.py) with what it measures (tune_measure.py, tune_probe.py) or is given (tune_assumptions.py).
"""

import argparse
import contextlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from core.errors import Invalid
from ops.campaign_commands import add_data_dir
from ops.desk import Place
from ops.tune_assumptions import from_toml, to_toml
from ops.tune_measure import LEAST_RATE, OVER_S, Measured, assumptions_of, watch
from ops.tune_model import KINDS, STEADY, Advice, Assumptions, Step, Target, advise, relay_rate
from ops.tune_probe import Gain, load, probe
from ops.workers_command import watched

MOST_RATE = 1e9
PROBE_OVER_S = 3.0  # a backlog of our own is bounded, so it is looked at no longer
MOST_S = 86_400.0
WIDTH = 80


def add_arguments(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The flags of `tune`."""
    part = parts.add_parser("tune", help="how many processes hold a rate and clear a spike, and what the bottleneck is")
    part.add_argument("--rate", type=float, help="orders a second that shall be held (default: what arrives now)")
    part.add_argument("--spike", type=float, default=0.0, help="orders that come on top of it, all at once")
    words = "seconds from the first order of the spike until all are in the ledger (default: %(default)g)"
    part.add_argument("--clear-in", type=float, default=60.0, metavar="S", help=words)
    part.add_argument("--over", type=float, default=OVER_S, metavar="S", help="measure so long (default: %(default)g)")
    part.add_argument("--assume", metavar="FILE", help="reckon with this file instead of measuring")
    part.add_argument("--print-assumptions", action="store_true", help="print what it reckons with, as such a file")
    words = "add one process of KIND (ledger), measure, remove it; needs load, and a stack of `rushgate up`"
    part.add_argument("--probe", nargs="?", const="ledger", choices=KINDS, metavar="KIND", help=words)
    words = "with --probe ledger: a backlog of a scratch campaign's own, bounded, while it measures"
    part.add_argument("--probe-load", action="store_true", help=words)
    part.add_argument("--json", action="store_true", help="print JSON")
    add_data_dir(part)


async def run(place: Place | None, args: argparse.Namespace) -> int:
    """Exit status 0; 1 if no number of processes does what is asked for. `place` None: with `--assume`.

    Raises: Fault.
    """
    _check(args)
    gain: Gain | None = None
    notes: list[str] = []
    rate: float | None = args.rate
    if place is None:
        given, origins = from_toml(Path(args.assume))
    else:
        found, gain = await _measure(place, args)
        given, origins, notes = found.assumptions, found.origins, found.notes
        most = place.settings.intake_high_orders
        if args.spike > most:
            words = f"RUSHGATE_INTAKE_HIGH_ORDERS is {most:,}: gateways refuse orders when so many wait, raise it"
            notes.append(words)
        if rate is None and found.arrivals >= LEAST_RATE:
            rate = round(found.arrivals, 1)
    if args.print_assumptions:
        print(to_toml(given, origins), end="")
        return 0
    if rate is None:
        raise Invalid("nothing arrives now, so name a rate", "--rate")
    advice = advise(given, Target(rate, args.spike, args.clear_in))
    if args.json:
        print(msgspec.json.encode(as_json(advice, given, origins, gain, notes)).decode())
    else:
        print("\n".join(lines(advice, given, origins, gain, notes)))
    return 0 if advice.fits else 1


def _check(args: argparse.Namespace) -> None:
    """Raises Invalid."""
    for name, least, most in (("rate", 0.0, MOST_RATE), ("spike", 0.0, MOST_RATE), ("clear_in", 0.1, MOST_S),
                              ("over", 1.0, 600.0)):  # fmt: skip
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise Invalid(f"must be {least:g} to {most:,.0f}", "--" + name.replace("_", "-"))
    if args.assume and (args.probe or args.probe_load):
        raise Invalid("a file is reckoned with, not measured: leave --assume out", "--probe")
    if args.probe_load and args.probe != "ledger":
        raise Invalid("makes a backlog for `--probe ledger`", "--probe-load")
    if args.probe_load and args.rate is None and not args.print_assumptions:  # told before it is measured for so long
        raise Invalid("its load is not what arrives, so name a rate", "--rate")


async def _measure(place: Place, args: argparse.Namespace) -> tuple[Measured, Gain | None]:
    if args.probe and (place.folder is None or place.is_dead):
        raise Invalid("adds and removes a process of `rushgate up` on this machine: none is known here", "--probe")
    backlog = load(place.settings) if args.probe_load else contextlib.nullcontext()
    async with watched(place.settings) as store, backlog:
        over_s = min(args.over, PROBE_OVER_S) if args.probe_load else args.over
        found = assumptions_of(await watch(store, place.settings, over_s), place.settings)
        if not args.probe or place.folder is None:
            return found, None
        gain = await probe(store, place.folder, place.settings, args.probe)
    return found, apply(found.assumptions, found.origins, gain)


def apply(given: Assumptions, origins: dict[str, str], gain: Gain) -> Gain:
    """The assumptions are as the probe found them."""
    alone = gain.before.rate / (1 + (gain.n - 1) * gain.efficiency)
    stage = given.stage(gain.kind)
    changed = msgspec.structs.replace(
        stage, per_second=max(1.0, round(alone, 1)), efficiency=round(gain.efficiency, 3), now=gain.n
    )
    setattr(given, gain.kind, changed)
    origins.update({f"{gain.kind}.per_second": "probed", f"{gain.kind}.efficiency": "probed"})
    return gain


def as_json(
    advice: Advice, given: Assumptions, origins: Mapping[str, str], gain: Gain | None, notes: list[str]
) -> dict[str, Any]:
    """What `tune --json` prints."""
    return {
        "target": advice.target._asdict() | {"needed_per_s": advice.target.needed},
        "fits": advice.fits,
        "processes": advice.processes,
        "reached_per_s": advice.reached,
        "clear_s": advice.clear_s,
        "bounds": [b._asdict() for b in advice.bounds],
        "one_more": [s._asdict() for s in advice.steps],
        "probe": None if gain is None else gain._asdict() | {"share": gain.share, "efficiency": gain.efficiency},
        "assumptions": given,
        "origins": dict(origins),
        "notes": notes,
    }


def lines(
    advice: Advice, given: Assumptions, origins: Mapping[str, str], gain: Gain | None, notes: list[str]
) -> list[str]:
    """The advice in plain words, 80 columns."""
    target = advice.target
    wish = f"To hold {_exact(target.rate)} orders/s"
    if target.spike:
        wish += (
            f", and to have a spike of {target.spike:,.0f} orders on top of it in the ledger within "
            f"{target.clear_in_s:g} s, {_exact(target.needed)} orders/s must pass every stage. Busy: the processes at "
            "the rate alone. One more: what it would add to its stage."
        )
    else:
        wish += f", no process busier than {STEADY:.0%}. One more: what it would add to its stage."
    scale = " ".join(f"{kind}={advice.processes[kind]}" for kind in KINDS)
    more = [_more(step) for step in advice.steps if step.kind == advice.bounds[0].kind]
    told = [*_wrapped(wish), "", *_table(advice, given, origins), "", f"    rushgate scale {scale}", ""]
    told += _wrapped(*_verdict(advice, given), *_bottleneck(advice), *more)
    if gain is not None:
        told += ["", *_wrapped(*_probed(gain))]
    for words in notes:
        told += _wrapped(f"note: {words}")
    return told


def _exact(rate: float) -> str:
    """A rate that was asked for: a small one is not rounded to another."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.3g}"


def _wrapped(*sentences: str) -> list[str]:
    return textwrap.wrap(" ".join(sentences), WIDTH, break_long_words=False, break_on_hyphens=False)


def _table(advice: Advice, given: Assumptions, origins: Mapping[str, str]) -> list[str]:
    rows = [("kind", "now", "advised", "one does", "together", "busy", "one more")]
    more = {step.kind: step for step in advice.steps}
    for kind in KINDS:
        stage, n, each = given.stage(kind), advice.processes[kind], given.per_order(kind)
        unit = "msg/s" if kind == "relay" else "req/s" if kind == "gateway" else "orders/s"
        does = relay_rate(given, n) if kind == "relay" else stage.of(n)
        origin = origins.get(f"{kind}.per_second", "assumed")
        rows.append((kind, str(stage.now), str(n), f"{stage.per_second:,.0f} {unit} ({origin})", f"{does:,.0f}",
                     f"{min(1.0, advice.target.rate * each / does):.0%}", f"{more[kind].share:+.0%}"))  # fmt: skip
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) if n in (0, 3) else cell.rjust(w) for n, (cell, w) in
                      enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]  # fmt: skip


def _verdict(advice: Advice, given: Assumptions) -> list[str]:
    target, told = advice.target, list[str]()
    first = advice.bounds[0]
    if advice.fits:
        told.append(f"This is enough: {advice.reached:,.0f} orders/s pass.")
        if target.spike and advice.clear_s is not None:
            told.append(f"The spike is in the ledger {advice.clear_s:.1f} s after its first order.")
        if target.spike and advice.messages_s and advice.messages_s > (advice.clear_s or 0.0) * 1.05:
            told.append(f"Its messages are delivered after {advice.messages_s:.1f} s.")
        return told
    told.append(f"It cannot be done: so {advice.reached:,.0f} orders/s pass, {target.needed:,.0f} are needed.")
    told.append(f"More processes do not help: {first.what} {'are' if first.plural else 'is'} the bound.")
    if target.spike:
        late = "never be cleared" if advice.clear_s is None else f"be in the ledger after {advice.clear_s:,.1f} s"
        told.append(f"The spike would {late}.")
    if given.machine.cores and first.plural:
        cores = target.needed * given.cpu_us() / 1e6 + given.machine.others
        told.append(f"{cores:,.1f} cores would do it, at {given.cpu_us():.0f} us of CPU an order.")
    return told


def _bottleneck(advice: Advice) -> list[str]:
    first, *rest = advice.bounds
    told = [f"Next bottleneck: {first.what}, at {first.orders_per_s:,.0f} orders/s."]
    fixed = next((b for b in rest if b.fixed), None)
    if fixed is not None and not first.fixed:
        told.append(f"Beyond it, whatever is added: {fixed.what}, at {fixed.orders_per_s:,.0f} orders/s.")
    return told


def _more(step: Step) -> str:
    if step.share < 0.005:
        return f"One {step.kind} process more adds nothing: {step.why}."
    limit = f", as {step.why}" if step.why else ""
    return f"One {step.kind} process more: {step.adds:+,.0f} orders/s ({step.share:+.0%}){limit}."


def _probed(gain: Gain) -> list[str]:
    before, after = gain.before, gain.after
    told = [
        f"Probe: {gain.n} {gain.kind} {'process' if gain.n == 1 else 'processes'} did {before.rate:,.0f}/s, "
        f"{gain.n + 1} did {after.rate:,.0f}/s: {gain.share:+.0%}.",
        f"The machine was {before.machine_busy:.0%} busy before, {after.machine_busy:.0%} with one more.",
    ]
    if after.machine_busy > 0.95 and gain.share < 0.25:
        told.append("Its cores are the bound: more processes on it do not help.")
    if not (before.agreed and after.agreed):
        told.append("The rates had not become steady when the time was up: take it as rough.")
    return told
