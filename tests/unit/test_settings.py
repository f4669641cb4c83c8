"""Settings: every bad one names itself, none tells a secret, and a child process gets the same ones."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigInvalid
from core.settings import Settings

SECRET = "correct-horse-battery"


def env(**values: str) -> dict[str, str]:
    return {"PATH": "/bin", "HOME": "/root"} | {f"RUSHGATE_{name.upper()}": text for name, text in values.items()}


def test_settings_default_without_any_variable() -> None:
    assert Settings.from_env({"PATH": "/bin"}) == Settings()


def test_settings_read_every_kind_of_variable() -> None:
    found = Settings.from_env(
        env(
            port="9000",
            store_timeout_s="0.5",
            durability="memory",
            host="::",
            channel_keys=f"app={SECRET}, web={SECRET}=,",
        )
    )
    assert (found.port, found.store_timeout_s, found.durability, found.host) == (9000, 0.5, "memory", "::")
    assert found.channel_keys == {"app": SECRET, "web": SECRET + "="}


BAD = [
    ("port", "65536"), ("port", "-1"), ("port", "http"), ("port", ""), ("port", "80.5"),
    ("shards", "0"), ("shards", "4097"), ("shards", "1e3"),
    ("durability", "everysec"), ("durability", ""), ("log_level", "INFO"),
    ("store_timeout_s", "0"), ("store_timeout_s", "-1"), ("store_timeout_s", "nan"), ("store_timeout_s", "inf"),
    ("ledger_timeout_s", "3601"), ("grace_s", "soon"),
    ("host", ""), ("data_dir", ""),
    ("gateway_workers", "0"), ("ledger_workers", "65"), ("body_bytes", "255"), ("batch_body_bytes", "1"),
    ("queue_orders", "0"), ("store_connections", "17"), ("reserve_batch", "513"), ("reserve_batch", "0"),
    ("retry_after_s", "0"), ("sold_out_lease_ms", "901"), ("sold_out_lease_ms", "-1"), ("drain_orders", "0"),
    ("replicas", "0"), ("replica_wait_ms", "0"), ("intake_high_orders", "0"), ("intake_max_age_s", "0"),
    ("store_memory_high", "1.1"), ("store_memory_high", "0"), ("claim_idle_ms", "99"), ("embedded_store_port", "70000"),
    ("admin_token", "fifteen-letters"), ("partners_url", "ftp://x"), ("partners_url", "x:80"),
    ("channel_keys", "app"), ("channel_keys", "app=short"), ("channel_keys", f"={SECRET}"),
    ("channel_keys", f"App={SECRET}"), ("channel_keys", "app=ключключключключ"),
    ("channel_keys", f"app={SECRET},app={SECRET}2"), ("channel_keys", f"app={SECRET},web={SECRET}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), BAD)
def test_settings_bad_variable_names_itself(name: str, text: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"^RUSHGATE_{name.upper()}: "):
        Settings.from_env(env(**{name: text}))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("port", "65536", "must be 0 to 65,535"),
        ("shards", "0", "must be 1 to 4,096"),
        ("store_timeout_s", "0", "must be more than 0 and at most 3,600"),
        ("durability", "everysec", "must be one of memory, fsync, replicated"),
        ("host", "", "must be text, and not empty"),
        ("admin_token", "short", "must have 16 or more visible ASCII characters"),
        ("admin_token", "16 characters or more", "must have 16 or more visible ASCII characters"),
    ],
)
def test_settings_message_says_once_what_must_be(name: str, text: str, says: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Settings.from_env(env(**{name: text}))
    assert str(caught.value) == f"RUSHGATE_{name.upper()}: {says}"


def test_settings_given_are_those_that_are_named(tmp_path: Path) -> None:
    config = write(tmp_path, "port = 1\nshards = 8\n")
    assert Settings.given(env(config=config, port="2")) == {"port": 2, "shards": 8}
    with pytest.raises(ConfigInvalid, match=r"^RUSHGATE_PORT: "):  # whose value it is, not whose it would have been
        Settings.given(env(config=config, port="-2"))


def test_settings_unknown_variable_names_itself() -> None:
    with pytest.raises(ConfigInvalid, match=r"^RUSHGATE_PROT: no such setting"):
        Settings.from_env(env(prot="1"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("admin_token", "hunter2-hunter2"),
        ("channel_keys", "hunter2-hunter2-hunter2"),
        ("channel_keys", "hunter2-hunter2="),  # base64 ends so: the secret stands where the name belongs
        ("channel_keys", "app=hunter2"),
        ("channel_keys", "hunter2=a,hunter2=b"),
        ("channel_keys", "hunter2-hunter2-hunter2=hunter2-hunter2-hunter2,hunter2="),
        ("hunter", "hunter2"),
    ],
)
def test_settings_message_tells_no_secret(name: str, text: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Settings.from_env(env(**{name: text}))
    assert "hunter2" not in str(caught.value)


def write(folder: Path, text: str) -> str:
    (folder / "rushgate.toml").write_text(text)
    return str(folder / "rushgate.toml")


def test_settings_from_toml_and_the_environment_wins(tmp_path: Path) -> None:
    config = write(tmp_path, f'port = 1\nshards = 8\nstore_timeout_s = 1\n[channel_keys]\napp = "{SECRET}"\n')
    found = Settings.from_env(env(config=config, port="2"))
    assert (found.port, found.shards, found.store_timeout_s) == (2, 8, 1.0)
    assert found.channel_keys == {"app": SECRET}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("prot = 1", "prot: no such setting"),
        ('port = "1"', r"/rushgate\.toml: port: must be a number, 0 to 65,535$"),
        ("port = 70000", r"/rushgate\.toml: port: must be 0 to 65,535$"),
        ("port = true", r"/rushgate\.toml: port: must be a number, 0 to 65,535$"),
        ("admin_token = 5", r"/rushgate\.toml: admin_token: must be text$"),
        ("payment_secrets = [1]", r"/rushgate\.toml: payment_secrets: must be a list of texts, 8 at most$"),
        ("[channel_keys]\napp = 5", r"/rushgate\.toml: channel_keys: "),
        ('[channel_keys]\napp = "with,comma-with,comma"', r"/rushgate\.toml: channel_keys: entry 1: "),
        ('[channel_keys]\napp = "with space with space"', r"/rushgate\.toml: channel_keys: entry 1: "),
        ("port =", "RUSHGATE_CONFIG: "),
    ],
)
def test_settings_bad_toml_names_the_setting(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(ConfigInvalid, match=name):
        Settings.from_env(env(config=write(tmp_path, text)))


def test_settings_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"RUSHGATE_CONFIG: .*nowhere\.toml cannot be read"):
        Settings.from_env(env(config=str(tmp_path / "nowhere.toml")))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigInvalid, match="RUSHGATE_CONFIG: "):
        Settings.from_env(env(config=str(tmp_path / "bytes.toml")))


secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=16, max_size=40)  # fmt: skip # noqa: E501
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}(\.[a-z0-9]{1,8})?", fullmatch=True)


@given(
    st.fixed_dictionaries(
        {
            "port": st.integers(0, 65_535),
            "shards": st.integers(1, 4096),
            "store_timeout_s": st.floats(0, 3_600, exclude_min=True),
            "durability": st.sampled_from(["memory", "fsync", "replicated"]),
            "admin_token": secrets | st.just(""),
            "channel_keys": st.dictionaries(names, secrets, max_size=4).filter(
                lambda d: len(set(d.values())) == len(d)
            ),
            "store_url": st.text(max_size=40).map(lambda text: f"redis://:{quote(text, safe='')}@host/0"),
        }
    )
)
def test_settings_reach_a_child_process_unchanged(values: dict[str, Any]) -> None:
    mine = msgspec.convert(values, Settings)
    assert Settings.from_env(mine.to_env()) == mine


def test_settings_with_values_are_checked_too() -> None:
    assert Settings().with_values(port=5).port == 5
    with pytest.raises(ConfigInvalid, match=r"^RUSHGATE_PORT: "):
        Settings().with_values(port=-5)
    with pytest.raises(ConfigInvalid, match=r"^RUSHGATE_ADMIN_TOKEN: "):
        Settings().with_values(admin_token="short")


@pytest.mark.parametrize("url", ["localhost:6379", "http://store", "0"])
def test_store_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"^RUSHGATE_STORE_URL: must begin with redis://"):
        Settings.from_env({"RUSHGATE_STORE_URL": url})
