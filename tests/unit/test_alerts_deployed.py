"""Alert rules and dashboard: every metric is one of ours, every alert has its page of the runbook, and fires."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.metrics_table import GATHERED, METRICS, OF_THE_CLIENT

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "rules.yml").read_text("utf-8"))["groups"][0]["rules"]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
BOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "rushgate.json").read_text("utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [t["expr"] for panel in PANELS for t in panel["targets"]]
KEDA = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "keda.yaml").read_text("utf-8")))
QUERIES = [t["metadata"]["query"] for one in KEDA for t in one["spec"]["triggers"] if t["type"] == "prometheus"]
TABLE = (*METRICS, *OF_THE_CLIENT, *GATHERED)
NAME = re.compile(r"\b(?:rushgate|process)_[a-z_]+|rushgate:[a-z0-9_:]+")


def known() -> set[str]:
    names = {row.name for row in TABLE} | RECORDED
    histograms = {row.name for row in TABLE if row.kind == "histogram"}
    return names | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}


@pytest.mark.parametrize("expression", EXPRESSIONS + QUERIES)
def test_every_metric_is_one_of_ours(expression: str) -> None:
    names = set(NAME.findall(expression))
    assert names or expression.startswith("up")
    assert names <= known()


def test_every_alert_has_its_entry_and_every_entry_its_alert() -> None:
    entries = re.findall(r"^## (Rushgate\w+)$", (ROOT / "docs" / "runbook.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(entries) == sorted(rule["alert"] for rule in ALERTS)
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")
    for entry, severity in re.findall(
        r"^## (Rushgate\w+)\n\n\*(\w+)\.\*", (ROOT / "docs" / "runbook.md").read_text("utf-8"), re.MULTILINE
    ):
        assert next(r for r in ALERTS if r["alert"] == entry)["labels"]["severity"] == severity, entry


def test_board_is_whole() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in BOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in BOARD["panels"])


def test_scaling_goes_to_what_is_there() -> None:
    deployments = {
        found["metadata"]["name"]
        for name in ("gateway.yaml", "workers.yaml")
        for found in yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / name).read_text("utf-8"))
        if found["kind"] == "Deployment"
    }
    for one in KEDA:
        spec = one["spec"]
        assert one["apiVersion"] == "keda.sh/v1alpha1"
        assert spec["scaleTargetRef"]["name"] in deployments
        assert 0 < spec["minReplicaCount"] < spec["maxReplicaCount"]
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            assert all(isinstance(value, str) for value in metadata.values())  # KEDA takes texts only
            if trigger["type"] == "cron":
                assert metadata.keys() == {"timezone", "start", "end", "desiredReplicas"}
                assert all(len(metadata[edge].split()) == 5 for edge in ("start", "end"))
                assert int(metadata["desiredReplicas"]) <= spec["maxReplicaCount"]


def promtool(*args: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["promtool", *args], capture_output=True, text=True, cwd=PROMETHEUS)


@pytest.mark.deploy
def test_promtool_takes_rules_and_configuration() -> None:
    for what in (("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml")):
        said = promtool(*what)
        assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.deploy
def test_promtool_reads_every_query_of_board_and_scaling(tmp_path: Path) -> None:
    queries = [t["expr"].replace("$__rate_interval", "1m") for panel in PANELS for t in panel["targets"]] + QUERIES
    rules = [{"record": f"try:query:{n}", "expr": query} for n, query in enumerate(queries)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "tried", "rules": rules}]}))
    said = promtool("check", "rules", path)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.deploy
def test_alerts_fire_when_they_should() -> None:
    """deploy/prometheus/rules_test.yml: each alert on a series that should raise it, and silence where all is well."""
    said = promtool("test", "rules", "rules_test.yml")
    assert said.returncode == 0, said.stdout + said.stderr
    tried = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text("utf-8"))["tests"]
    fired = {one["alertname"] for test in tried for one in test["alert_rule_test"] if one.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in ALERTS}
