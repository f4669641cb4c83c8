"""docs/channels.md, followed word for word: its worked example, and both its programs against a real gateway."""

import ast
import hashlib
import hmac
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.support import ADMIN, ROOT, Client, Up, bearer
from tests.support import fresh

TEXT = (ROOT / "docs" / "channels.md").read_text("utf-8")


def block(kind: str) -> str:
    """The one block of code of a kind."""
    [found] = re.findall(rf"(?ms)^```{kind}\n(.*?)^```$", TEXT)
    return str(found)


def test_worked_example_is_right() -> None:
    [key] = set(re.findall(r"`(rgs_[\w-]+_[\w-]{43})`", TEXT))
    [content] = re.findall(r"(?m)^    (b'rushgate-v1.*')$", TEXT)
    [wanted] = re.findall(r"(?m)^    Rushgate-Signature: v1=(\w+)$", TEXT)
    assert hmac.new(key.encode(), ast.literal_eval(content), hashlib.sha256).hexdigest() == wanted


@pytest.fixture(scope="module")
def environ(stack: Up) -> dict[str, str]:
    """What both programs want, of a new channel that one gateway process knows surely: whichever is asked, in time."""
    client = stack.client
    body = json.dumps({"channel": fresh("doc"), "kind": "signing"}).encode()
    made = client.call("POST", "/v1/admin/channels", body, bearer(ADMIN)).json
    values = {"GATEWAY": client.url, "CAMPAIGN": client.sale(), "KEY_ID": made["key_id"], "SIGNING_KEY": made["key"]}
    return values | {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def run(argv: list[str], environ: dict[str, str], wanted: str) -> None:
    """The program does as the page says, once each gateway process has heard of the channel."""
    for _ in range(20):
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=30, check=False)
        if wanted in done.stdout:
            return
        assert "signature_invalid" in done.stdout or "401" in done.stderr, done
    raise AssertionError(done)


def test_shell_program_orders(environ: dict[str, str]) -> None:
    run(["bash", "-c", block("sh")], environ, "HTTP/1.1 202 Accepted")


def test_python_program_orders_and_reads_its_order(environ: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "channel.py"
    program.write_text(block("python"))
    run([sys.executable, str(program)], environ, "accepted")


def test_program_with_a_wrong_key_is_refused(environ: dict[str, str], client: Client) -> None:
    """Control: what the programs send is looked at."""
    done = subprocess.run(
        ["bash", "-c", block("sh")], env=environ | {"SIGNING_KEY": "rgs_x_y"}, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert "HTTP/1.1 401 Unauthorized" in done.stdout
