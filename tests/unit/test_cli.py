"""The command line: what is understood, and how errors end."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core.errors import ConfigInvalid, Fault, Invalid, StoreUnavailable
from core.model import CampaignSpec
from core.settings import Settings
from loadtest.history import Recorder
from ops import cli, commands
from ops.campaign_commands import read_campaign
from ops.desk import STACK_FILE, command_place


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
        ["order", "show", "i", "--json", "--data-dir", "d"],
        ["order", "refund", "i", "--line", "red=1", "--line", "blue=2", "--reason", "late"],
        ["order", "do", "i", "pick"],
    ],
)
def test_command_line_is_understood(argv: list[str]) -> None:
    assert commands.parser().parse_args(argv).part == argv[0]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["no-such"],
        ["worker"],
        ["worker", "no-such"],
        ["campaign"],
        ["up", "--port", "x"],
        ["order", "do", "i"],
        ["room", "c", "--rate", "x"],
        ["room", "c", "--rate", "100001"],
        ["order", "refund", "i", "--amount", "1", "--line", "red=1"],
    ],
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
        (Invalid("must not be 0", "units"), 1, "rushgate: units: must not be 0\n"),
        (Invalid("must not be 0", "UNITS"), 2, "rushgate: UNITS: must not be 0\n"),
        (Invalid("is no order id", "--order"), 2, "rushgate: --order: is no order id\n"),
        (Invalid("odd"), 1, "rushgate: odd\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_ends_in_one_line_and_its_status(
    raised: BaseException, status: int, says: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def run(args: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr(commands, "run", run)
    assert cli.main(["migrate"]) == status
    assert capsys.readouterr().err == says


@pytest.mark.parametrize(
    ("name", "argv", "says"),
    [
        ("none", [], "rushgate: HISTORY: {path}/none: No such file or directory\n"),
        ("empty", [], "rushgate: HISTORY: {path}/empty is empty: no history was recorded in it\n"),
        ("whole", ["--final", "{path}/none"], "rushgate: --final: {path}/none: No such file or directory\n"),
        ("whole", ["--final", "{path}/empty"], "rushgate: --final: {path}/empty: Input data was truncated\n"),
    ],
)
def test_check_of_a_file_that_cannot_be_read_is_wrong_usage(
    name: str, argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    Recorder(tmp_path / "whole", "c").close()
    argv = ["check", str(tmp_path / name), *(arg.format(path=tmp_path) for arg in argv)]
    assert cli.main(argv) == 2  # 1 is a history that violates an invariant
    assert capsys.readouterr().err == says.format(path=tmp_path)


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSHGATE_PORT", "1")
    monkeypatch.setenv("RUSHGATE_GATEWAY_WORKERS", "3")
    settings = commands._stack_settings(commands.parser().parse_args(["up", "--port", "2"]))
    assert (settings.port, settings.gateway_workers) == (2, 3)


GOOD = """
opens_at = 2026-01-01T00:00:00Z
closes_at = 2026-01-02T00:00:00Z
currency = "CNY"
pay_within_s = 900
[[skus]]
sku = "red"
name = "Red"
stock = 1
price = 1
"""


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (f'campaign = "A B"{GOOD}', None, "{file}: campaign: 1 to 64 of a-z, 0-9, _ and -, beginning with"),
        (GOOD, None, "{file}: campaign: 1 to 64 of"),
        (f"campaign = 5{GOOD}", None, "{file}: campaign: 1 to 64 of"),
        (f'campaign = "ok"{GOOD}', "_x", "--name: 1 to 64 of"),
        (GOOD.replace("-02T", "-01T"), "x", "{file}: closes_at: must be later than opens_at"),
        (GOOD + GOOD[GOOD.index("[[") :], "x", "{file}: skus: name the same sku twice"),
        (GOOD.replace("stock = 1", "stock = -1"), "x", "{file}: skus[0].stock: "),
    ],
)
def test_campaign_file_that_is_bad_names_itself_and_the_field(
    tmp_path: Path, text: str, name: str | None, says: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(Invalid) as caught:
        read_campaign(file, name)
    where = f"{caught.value.field}: " if caught.value.field else ""
    assert f"{where}{caught.value}".startswith(says.format(file=file))


def test_sample_campaign_has_every_field_and_its_defaults() -> None:
    sample = Path(__file__).resolve().parents[2] / "deploy" / "sample" / "campaign.toml"
    fields = re.findall(r"(?m)^(?:# )?\[*(\w+)(?:\]| = )", sample.read_text())
    assert set(CampaignSpec.__struct_fields__) <= set(fields)
    _, spec = read_campaign(sample, None)
    for name in ("delivery_within_s", "after_sales_s"):
        assert f"# {name} = {getattr(spec, name)} " in sample.read_text()


def stack_file(folder: Path, **values: Any) -> None:
    known = Settings().with_values(store_url="redis://s", ledger_dsn="postgresql://l", shards=8, **values)
    text = json.dumps({"gateway": "http://g", "settings": msgspec.structs.asdict(known)})
    (folder / STACK_FILE).write_text(text)


def test_command_place_takes_from_the_stack_only_what_is_not_named(tmp_path: Path) -> None:
    stack_file(tmp_path, store_timeout_s=3.0, log_level="debug")
    place = command_place({"RUSHGATE_DATA_DIR": str(tmp_path), "RUSHGATE_LOG_LEVEL": "error", "RUSHGATE_STORE_URL": ""})
    found = place.settings
    assert (place.folder, place.gateway, place.is_dead) == (tmp_path, "http://g", True)
    assert (found.store_url, found.ledger_dsn, found.shards) == ("redis://s", "postgresql://l", 8)
    assert (found.store_timeout_s, found.log_level) == (3.0, "error")


def test_command_place_with_both_urls_needs_no_stack(tmp_path: Path) -> None:
    stack_file(tmp_path)
    env = {"RUSHGATE_STORE_URL": "redis://o", "RUSHGATE_LEDGER_DSN": "postgresql://o"}
    place = command_place(env, str(tmp_path))
    assert (place.folder, place.settings.store_url, place.settings.shards) == (None, "redis://o", 64)


@pytest.mark.parametrize("name", ["RUSHGATE_STORE_URL", "RUSHGATE_LEDGER_DSN"])
@pytest.mark.parametrize("runs", [True, False])
def test_command_place_with_one_foreign_url_is_refused(tmp_path: Path, name: str, runs: bool) -> None:
    if runs:
        stack_file(tmp_path)
    config = tmp_path / "c.toml"
    other = "redis://other" if name == "RUSHGATE_STORE_URL" else "postgresql://other"
    config.write_text(f'{name.removeprefix("RUSHGATE_").lower()} = "{other}"\n')
    for env in ({name: other}, {"RUSHGATE_CONFIG": str(config)}):
        with pytest.raises(ConfigInvalid, match=r"^set both RUSHGATE_STORE_URL and RUSHGATE_LEDGER_DSN, or neither$"):
            command_place(env, str(tmp_path))


def test_command_place_with_other_shards_than_the_stack_is_refused(tmp_path: Path) -> None:
    stack_file(tmp_path)
    with pytest.raises(ConfigInvalid, match=r"^RUSHGATE_SHARDS: the stack in .* has 8"):
        command_place({"RUSHGATE_SHARDS": "64"}, str(tmp_path))
