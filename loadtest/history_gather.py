"""Histories of one run that several processes recorded, as one: on one machine or on many.

Times are brought to one clock. Processes of one machine share its monotonic clock; between machines the wall clocks of
the headers tie them, so that these must agree within the checker's bound (`Bounds.clock_ms`): NTP does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from loadtest.history import Answer, Event, History, HistoryInvalid, Invoke, Operation, read_history

T = TypeVar("T", bound=Event)

SUFFIX = ".jsonl"
MACHINE = "machine"  # in a header's settings: whose monotonic clock it is


def read_gathered(path: Path) -> History:
    """The history of a file, or of all histories of a folder together.

    Raises: OSError; HistoryInvalid as `read_history` and `together`, and for a folder without any.
    """
    if not path.is_dir():
        return read_history(path)
    files = sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise HistoryInvalid(f"{path}: no history (*{SUFFIX}) is in it")
    return together([read_history(file) for file in files])


def together(histories: Sequence[History]) -> History:
    """One history of several; operations get numbers of their own. Whole only if each of them is.

    Raises: HistoryInvalid for none, and for histories of different campaigns.
    """
    if not histories:
        raise HistoryInvalid("there is no history")
    if len(histories) == 1:
        return histories[0]
    first = min(histories, key=lambda h: h.header.started_wall_ns)
    campaigns = {h.header.campaign for h in histories}
    if len(campaigns) > 1:
        raise HistoryInvalid(f"histories of different campaigns: {', '.join(sorted(campaigns))}")
    whole = History(first.header, [], [], first.end_ns, all(h.whole for h in histories))
    numbers = 0
    for history in histories:
        shift_ns = _shift_ns(history, first)
        for op in history.operations:
            numbers += 1
            ask: Invoke = replace(op.ask, n=numbers, at_ns=op.ask.at_ns + shift_ns)
            answer: Answer | None = None
            if op.answer is not None:
                answer = replace(op.answer, n=numbers, at_ns=op.answer.at_ns + shift_ns)
            whole.operations.append(Operation(ask, answer))
        whole.faults += [_moved(fault, shift_ns) for fault in history.faults]
        whole.end_ns = max(whole.end_ns, history.end_ns + shift_ns)
    return whole


def _moved(event: T, shift_ns: int) -> T:
    return replace(event, at_ns=event.at_ns + shift_ns)


def _shift_ns(history: History, first: History) -> int:
    """What brings its times to the clock of the first one."""
    ours, theirs = first.header, history.header
    machine = theirs.settings.get(MACHINE)
    if history is first or (machine and machine == ours.settings.get(MACHINE)):
        return 0
    return (theirs.started_wall_ns - theirs.started_mono_ns) - (ours.started_wall_ns - ours.started_mono_ns)
