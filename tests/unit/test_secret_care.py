"""Guards over the code: secrets are not compared by ==, and the console's page takes no text for HTML."""

import ast
import re
from pathlib import Path

import pytest

from core.errors import ConfigInvalid
from core.settings import Settings

ROOT = Path(__file__).parents[2]
CODE = [path for part in ("core", "gateway", "lua", "ops", "workers") for path in sorted((ROOT / part).rglob("*.py"))]
PAGE = sorted((ROOT / "ops" / "console" / "static").glob("*.js")) + sorted(
    (ROOT / "ops" / "console" / "static").glob("*.html")
)
# Names that hold a secret or what proves one. `key` alone is not: request keys, keys of the store.
_secret = re.compile(
    r"(?:^|_)(?:secrets?|password|passwd|token|mac|signature|signed|csrf|credentials?|channel_key|signing_key)$"
)
# Their length, or whether there is one, may be told.
HARMLESS = (ast.Constant,)
_html = re.compile(
    r"\.(?:inner|outer)HTML\b|insertAdjacentHTML|document\.write|\beval\(|new Function|javascript:"
    r"|\son[a-z]+\s*=\s*[\"']"
)


def name_of(node: ast.AST) -> str:
    """The last name of an expression: of a.b.c it is c."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript):
        return name_of(node.slice) if isinstance(node.slice, ast.Constant) else name_of(node.value)
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Constant):
        return str(node.value)
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(text: str) -> list[str]:
    """Comparisons by == or != of what a secret's name is given to, with anything but a constant."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Compare) or not any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            continue
        sides = [node.left, *node.comparators]
        named = any(not isinstance(side, HARMLESS) and _secret.search(name_of(side)) for side in sides)
        if named and not any(isinstance(side, HARMLESS) for side in sides):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_no_secret_is_compared_by_its_first_wrong_byte() -> None:
    found = {str(path.relative_to(ROOT)): lines for path in CODE if (lines := unsafe(path.read_text("utf-8")))}
    assert found == {}


@pytest.mark.parametrize(
    "text", ["token == given", "a.admin_token != b", "self._signature(x) == y", "kept['secret'] == given", "x != mac"]
)
def test_control_such_a_comparison_is_found(text: str) -> None:
    assert unsafe(text)


@pytest.mark.parametrize("text", ["len(mac) != n", "token == ''", "hmac.compare_digest(token, given)", "key == other"])
def test_what_tells_nothing_of_a_secret_is_let_pass(text: str) -> None:
    assert unsafe(text) == []


def test_page_of_the_console_takes_no_text_for_html() -> None:
    assert len(PAGE) > 10
    assert [(path.name, found[0]) for path in PAGE for found in _html.finditer(path.read_text("utf-8"))] == []


@pytest.mark.parametrize("text", ["a.innerHTML = b", "x.insertAdjacentHTML('a', b)", '<p onclick="x()">', "eval(x)"])
def test_control_such_html_is_found(text: str) -> None:
    assert _html.search(text)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("ADMIN_TOKEN", "QzSentinel9x"),
        ("CHANNEL_KEYS", "QzSentinel9x7Kp2LmN4vB=app"),
        ("CHANNEL_KEYS", "app=QzSentinel9x7Kp2LmN4vB,web=QzSentinel9x7Kp2LmN4vB"),
        ("CHANNEL_KEYS", "app=QzSentinel9x7Kp2LmN4vB,app=QzSentinel9x7Kp2LmN4vB"),
        ("TICKET_SECRETS", "QzSentinel9x7Kp2LmN4vB x"),
        ("SIGNING_SECRETS", "QzSentinel9x7Kp2LmN4vB,ü" + "QzSentinel9x"),
        ("PAYMENT_SECRETS", ",".join(["QzSentinel9x7Kp2LmN4vB"] * 9)),
        ("PARTNER_SECRETS", ",".join(["QzSentinel9x7Kp2LmN4vB"] * 9)),
    ],
)
def test_wrong_secret_is_told_by_its_place(setting: str, text: str) -> None:
    with pytest.raises(ConfigInvalid) as told:
        Settings.from_env({f"RUSHGATE_{setting}": text})
    assert setting in str(told.value)
    assert "QzSentinel" not in f"{told.value} {told.value.__cause__!r}"
