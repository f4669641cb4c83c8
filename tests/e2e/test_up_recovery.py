"""A stack that starts on a data directory with campaigns: the ready line comes when they are in service, or says so."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ops import stack as stack_module
from ops.processes import Supervisor
from ops.stack import NotReady, _until_ready
from tests.e2e.support import Up

ALONE = {"RUSHGATE_RECONCILE_WORKERS": "0"}
MEMORY = {"RUSHGATE_DURABILITY": "memory"}


@contextmanager
def running(data: Path, **env: str) -> Iterator[Up]:
    found = Up(data, "--port", "0", env=env)
    try:
        yield found.wait_ready()
    finally:
        found.end()


def sold(data: Path, **env: str) -> tuple[str, Any]:
    """A campaign with three orders in the ledger, and the answer to the first; the stack has stopped."""
    with running(data, **env) as up:
        campaign = up.client.sale()
        made = [up.client.order(campaign, f"b{n}", f"k{n}") for n in range(3)]
        assert [reply.status for reply in made] == [202] * 3
        up.client.settled_audit(campaign)
        return campaign, made[0].json["order_id"]


@pytest.mark.parametrize("level", ["fsync", "memory"])
def test_stack_without_a_reconcile_worker_starts_again_and_sells(tmp_path: Path, level: str) -> None:
    env = ALONE | {"RUSHGATE_DURABILITY": level}
    campaign, order = sold(tmp_path / "d", **env)
    with running(tmp_path / "d", **env) as up:
        # At once: what was lost with the store was rebuilt before the ready line.
        assert up.client.order(campaign, "b0", "k0").json["order_id"] == order
        assert up.client.order(campaign).status == 202
        audit = up.client.settled_audit(campaign)
        assert (audit["ok"], audit["accepted"]) == (True, 4)
        said = up.command("doctor").stdout
        rebuilt = rf"^ok +rebuild +campaign {campaign}, .*, epoch 2: 3 orders, no gap; why: "
        assert bool(re.search(rebuilt, said, re.MULTILINE)) is (level == "memory")
        assert re.search(r"^ok +intake ", said, re.MULTILINE)


def test_ready_line_waits_for_the_reconcile_workers_rebuild(tmp_path: Path) -> None:
    campaign, order = sold(tmp_path / "d", **MEMORY)
    with running(tmp_path / "d", **MEMORY) as up:
        assert up.client.order(campaign, "b0", "k0").json["order_id"] == order
        assert "out of service" not in up.stderr.read_text()


def test_campaign_that_waits_for_a_person_is_told_with_the_command_to_type(tmp_path: Path) -> None:
    env = ALONE | MEMORY | {"RUSHGATE_RECOVERY": "manual"}
    campaign, order = sold(tmp_path / "d", **env)
    with running(tmp_path / "d", **env) as up:
        hint = f"it waits for `rushgate rebuild {campaign}`"
        assert f"rushgate: warning: campaign {campaign} is out of service: {hint}\n" in up.stderr.read_text()
        refused = up.client.order(campaign)
        assert (refused.status, refused.code) == (503, "recovering")
        assert refused.json["title"].startswith("The campaign is out of service until it is rebuilt: ")
        assert refused.json["detail"] == f"campaign {campaign} is out of service until it is rebuilt"
        done = up.command("audit", campaign)
        why = f"campaign {campaign} is out of service: the store does not hold it as the ledger has it; {hint}"
        assert (done.returncode, done.stderr) == (1, f"rushgate: {why}\n")
        done = up.command("rebuild", campaign)
        assert done.returncode == 0
        assert ": 3 orders, numbered up to 3; no gap\n" in done.stdout
        assert up.client.order(campaign, "b0", "k0").json["order_id"] == order


async def test_stack_that_is_not_ready_for_no_setting_names_the_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Look:
        why = "campaign x: it cannot be judged"

    monkeypatch.setattr(stack_module, "READY_S", 0.1)
    monkeypatch.setattr(stack_module, "readyz", lambda gateway: (503, '{"code":"recovering"}'))
    async with Supervisor() as supervisor:
        with pytest.raises(NotReady) as caught:  # exit status 1: wrong settings alone are 78
            await _until_ready("http://x", supervisor, tmp_path, Look())  # type: ignore[arg-type]
    assert caught.value.detail == (
        'the gateway is not ready after 0.1 s: it says {"code":"recovering"}; '
        f"the store was not admitted: campaign x: it cannot be judged; see {tmp_path}"
    )
