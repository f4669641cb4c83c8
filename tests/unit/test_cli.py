"""The command line: what is understood, and how errors end."""

import argparse

import pytest

from core.errors import ConfigInvalid, Fault, StoreUnavailable
from ops import cli


@pytest.mark.parametrize(
    "argv",
    [
        ["up", "--port", "0", "--data-dir", "d", "--gateway-workers", "2", "--ledger-workers", "2"],
        ["demo", "--once", "--buyers", "10"],
        ["gateway", "--fd", "3"],
        ["worker", "ledger"],
        ["migrate"],
        ["doctor", "--json"],
        ["campaign", "apply", "f.toml", "--name", "n"],
        ["campaign", "restock", "c", "red", "--id", "i", "--", "-5"],
        ["audit", "c", "--json"],
    ],
)
def test_command_line_is_understood(argv: list[str]) -> None:
    assert cli.parser().parse_args(argv).part == argv[0]


@pytest.mark.parametrize(
    "argv", [[], ["no-such"], ["worker"], ["worker", "no-such"], ["campaign"], ["up", "--port", "x"]]
)
def test_wrong_usage_exits_2_and_says_how(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2
    assert "usage: rushgate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "says"),
    [
        (ConfigInvalid("RUSHGATE_X: wrong"), 78, "rushgate: RUSHGATE_X: wrong\n"),
        (StoreUnavailable("gone"), 1, "rushgate: gone\n"),
        (Fault("odd"), 1, "rushgate: odd\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_ends_in_one_line_and_its_status(
    raised: BaseException, status: int, says: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def run(args: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr(cli, "run", run)
    assert cli.main(["migrate"]) == status
    assert capsys.readouterr().err == says


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSHGATE_PORT", "1")
    monkeypatch.setenv("RUSHGATE_GATEWAY_WORKERS", "3")
    settings = cli._stack_settings(cli.parser().parse_args(["up", "--port", "2"]))
    assert (settings.port, settings.gateway_workers) == (2, 3)
