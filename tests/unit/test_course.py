"""The course of a campaign after its rush: what counts as the end, and what is printed of it."""

import pytest
from rich.console import Console

from core.errors import ConfigInvalid
from core.flows import FLOWS
from core.settings import Settings
from loadtest.partners_command import options_from
from ops.commands import parser
from ops.course import Standing, Unsent
from ops.course_display import CourseDisplay, ends_table, seconds_text, stages, still_open, times_table
from ops.played import prepare

GOODS = FLOWS["goods"]
OVER = Standing({"completed": 5, "refunded": 2}, moves=40, accepted=7, on_sale=0, left=0, held=0)


def test_course_is_over_only_when_nothing_is_left_held_or_open() -> None:
    assert OVER.over(GOODS)
    for changed in (
        OVER._replace(left=1),
        OVER._replace(held=1),
        OVER._replace(accepted=8),  # one is on its way to the ledger
        OVER._replace(states={"completed": 5, "refund_pending": 2}),
    ):
        assert not changed.over(GOODS)


def test_open_orders_count_those_on_their_way_to_the_ledger() -> None:
    standing = Standing({"accepted": 3, "completed": 1}, moves=5, accepted=6, on_sale=2, left=4, held=3)
    assert (standing.ended(GOODS), standing.open(GOODS)) == (1, 5)
    line = CourseDisplay(Console(), GOODS).line(standing, 12.34)
    assert line == "  12.3 s  orders open 5  ended 1  units left 4  held 3"
    out = Console(width=60, record=True, force_terminal=False)
    with out.capture() as printed:
        CourseDisplay(out, GOODS).show(standing._replace(waits="9 messages in the outbox"), 12.34)
    assert printed.get() == f"{line}  waits for 9 messages in the outbox\n"
    said = still_open(standing, Unsent(9, 1), GOODS)
    assert said == (
        "3 orders accepted, 2 orders on their way to the ledger, 4 units left, 3 units held, 9 messages in the outbox, "
        "1 messages dead"
    )
    assert still_open(OVER, Unsent(0, 0), GOODS) == "something is still moving"


@pytest.mark.parametrize("order_type", FLOWS)
def test_stages_are_every_state_but_the_first_once(order_type: str) -> None:
    flow = FLOWS[order_type]
    assert sorted(stages(flow)) == sorted(s for s in flow.states if s != flow.first)


def test_stages_of_goods_go_the_way_to_the_wanted_end_first() -> None:
    found = stages(GOODS)
    ahead = ["paid", "picking", "shipped", "received", "completed"]
    assert [s for s in found if s in ahead] == ahead
    assert found.index("completed") < min(found.index(s) for s in ("cancelled", "expired", "refund_pending"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.3404, "340 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (4.214, "4.21 s"),
     (99.99, "99.99 s"), (99.996, "100 s"), (1_234.5, "1,234 s")],
)  # fmt: skip
def test_seconds_are_told_to_three_digits_or_so(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize("width", [80, 100])
def test_tables_show_every_end_and_each_stage_that_was_reached(width: int) -> None:
    moves = [
        {"state": "paid", "moves": 4_093, "after_s": [1.82, 3.75], "late_s": [-2.0, -1.0]},
        {"state": "expired", "moves": 5_128, "after_s": [4.12, 4.23], "late_s": [0.122, 0.232]},
    ]
    deliveries = [
        {"topic": "settle", "messages": 4_093, "after_s": [1.87, 3.83]},
        {"topic": "notify", "messages": 9, "after_s": [1.0, 2.0]},  # no stage
    ]
    console = Console(width=width, record=True, force_terminal=False)
    with console.capture() as said:
        console.print(times_table(GOODS, moves, deliveries))
        console.print(ends_table(GOODS, {"completed": 3, "shipped": 1}, {"completed": 4, "shipped": 1}))
    lines = [" ".join(line.split()) for line in said.get().splitlines()]
    assert lines[2:6] == [
        "paid 4,093 1.82 s 3.75 s",
        "hold settled 4,093 1.87 s 3.83 s",
        "expired 5,128 4.12 s 4.23 s",
        "after pay_by 122 ms 232 ms",
    ]
    assert lines[8:] == [
        "all 4 5", "completed 3 75.0% 4", "cancelled 0 0.0% 0", "expired 0 0.0% 0", "refunded 0 0.0% 0",
        "shipped 1 25.0% 1",
    ]  # fmt: skip


def test_played_partners_get_all_secrets_in_their_environment_and_no_setting_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUSHGATE_ADMIN_TOKEN", "not-for-the-partners")
    settings = Settings(
        partner_secrets=("whsec_new", "whsec_old"),
        payment_secrets=("whsec_pay",),
        channel_keys={"app": "key-of-the-channel-app", "web": "key-of-the-channel-web"},
    )
    played = prepare(settings)
    with played.sock:
        argv, env = played.argv("http://127.0.0.1:8080"), played.env()
    assert "RUSHGATE_ADMIN_TOKEN" not in env
    assert not any("whsec_" in word for word in argv)  # everybody can read a command line
    options = options_from(parser().parse_args(argv[3:]), env)
    assert options.gateway_url == "http://127.0.0.1:8080"
    assert options.channel_keys == settings.channel_keys
    assert options.secrets["*"] == ["whsec_new", "whsec_old"]
    assert options.secrets["payment"] == ["whsec_pay", "whsec_new", "whsec_old"]


def test_partners_are_not_played_without_secrets() -> None:
    with pytest.raises(ConfigInvalid, match="RUSHGATE_PARTNER_SECRETS, RUSHGATE_PAYMENT_SECRETS, RUSHGATE_CHANNEL_K"):
        prepare(Settings())
