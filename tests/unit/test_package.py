"""The wheel, built from just what the Dockerfile copies, has every file that the program reads."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "gateway", "loadtest", "lua", "ops", "workers")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    folder: Path = tmp_path_factory.mktemp("package")
    source = folder / "src"
    for line in (ROOT / "deploy" / "container" / "Dockerfile").read_text("utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *what, where = line.split()[1:]
            target = source / where.removeprefix("/src").lstrip("/")
            for name in what:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / name, target / Path(name).name if target.is_dir() else target)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source],
        capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_file_is_there(site: Path) -> None:
    missing = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not (site / path.relative_to(ROOT)).is_file()
    ]
    assert missing == []


def test_program_runs_from_it(site: Path, tmp_path: Path) -> None:
    """Not from the clone."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    code = "import ops.cli, sys; print(ops.cli.__file__); sys.exit(ops.cli.main(['gateway', '--help']))"
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(str(site))
