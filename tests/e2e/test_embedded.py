"""The embedded services for real: real binaries, real SIGKILL, leftovers of killed owners."""

import asyncio
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ops.embedded import DataDirBusy, DataDirLock, PortTaken, command_line, process_ids, status
from ops.embedded_ledger import EmbeddedLedger, program
from ops.embedded_store import FREE_PORTS, EmbeddedStore
from ops.embedded_user import SERVER_USER

PATIENCE_S = 20.0

OWNER = """
import asyncio, sys
from ops.embedded_ledger import EmbeddedLedger
from ops.embedded_store import EmbeddedStore

async def main():
    service = {"store": EmbeddedStore, "ledger": EmbeddedLedger}[sys.argv[1]](sys.argv[2])
    url = await service.start()
    print(service.pid, url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def is_running(pid: int | None) -> bool:
    """A zombie has ended: its parent, or an init that does not reap, has only not looked."""
    assert pid is not None
    return status(pid).get("State", "Z") != "Z"


def processes_of(data_dir: Path) -> list[list[str]]:
    """Command lines that carry the directory; the backends' do not, but they end with their postmaster."""
    return [argv for argv in map(command_line, process_ids()) if any(str(data_dir) in part for part in argv)]


def exists(path: str) -> bool:
    return Path(path).exists()


def children_of(pid: int | None) -> list[int]:
    return [child for child in process_ids() if status(child).get("PPid") == str(pid)]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)


def run_owner(service: str, data_dir: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", OWNER, service, data_dir], stdout=subprocess.PIPE)


async def leave_running(service: str, data_dir: Path) -> tuple[int, str]:
    """Pid and URL of a service whose owner was killed by SIGKILL."""
    with run_owner(service, data_dir) as owner:
        assert owner.stdout is not None
        line = await asyncio.to_thread(owner.stdout.readline)
        owner.kill()
    pid, url = line.decode().split()
    assert is_running(int(pid))
    return int(pid), url


@asynccontextmanager
async def running_store(store: EmbeddedStore) -> AsyncIterator["Redis"]:
    client = Redis.from_url(await store.start(), decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()
        await store.stop()


@asynccontextmanager
async def running_ledger(ledger: EmbeddedLedger) -> AsyncIterator[str]:
    try:
        yield await ledger.start()
    finally:
        await ledger.stop()


async def run_sql(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


# The store


async def test_store_is_set_as_promised_and_stop_leaves_nothing(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "data")
    async with running_store(store) as client:
        is_set = await client.config_get("append*", "no-append*", "maxmemory-policy", "save", "bind")
        assert is_set["appendonly"] == "yes"
        assert is_set["appendfsync"] == "always"
        assert is_set["no-appendfsync-on-rewrite"] == "no"
        assert is_set["maxmemory-policy"] == "noeviction"
        assert is_set["save"] == ""
        assert is_set["bind"] == "127.0.0.1"
        assert store.pid is not None
        assert os.getsid(store.pid) == store.pid  # the terminal's Ctrl-C does not reach it
        for secret in ("store.password", "store/valkey.conf"):
            assert stat.S_IMODE((tmp_path / "data" / secret).stat().st_mode) == 0o600
        pid = store.pid
    assert not is_running(pid)
    assert processes_of(tmp_path) == []
    await store.stop()


async def test_store_killed_and_started_again_keeps_data_password_and_port(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    async with running_store(store) as client:
        await client.set("order", "accepted")
        url, pid = store.url, store.pid
        await store.kill()
        assert not is_running(pid)
        assert store.pid is None
        assert await store.start() == url
        await client.connection_pool.disconnect()  # its connections are of the dead one
        assert await client.get("order") == "accepted"
        assert await store.restart() == url
        await client.connection_pool.disconnect()
        assert await client.get("order") == "accepted"


async def test_store_takes_settings_for_tests(tmp_path: Path) -> None:
    store = EmbeddedStore(
        tmp_path,
        appendonly=False,
        appendfsync="everysec",
        maxmemory_bytes=50_000_000,
        extra_config=["maxmemory-policy allkeys-lru", "enable-debug-command local"],
    )
    async with running_store(store) as client:
        is_set = await client.config_get("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
        assert is_set == {
            "appendonly": "no",
            "appendfsync": "everysec",
            "maxmemory": "50000000",
            "maxmemory-policy": "allkeys-lru",
        }


async def test_store_full_of_data_refuses_instead_of_evicting(tmp_path: Path) -> None:
    async with running_store(EmbeddedStore(tmp_path, maxmemory_bytes=1)) as client:
        with pytest.raises(ResponseError, match="used memory"):
            await client.set("order", "accepted")


async def test_store_left_by_a_killed_owner_is_ended_and_its_data_kept(tmp_path: Path) -> None:
    pid, url = await leave_running("store", tmp_path)
    client = Redis.from_url(url)
    await client.set("order", "accepted")
    await client.aclose()
    store = EmbeddedStore(tmp_path)
    async with running_store(store) as client:
        assert not is_running(pid)
        assert store.pid != pid
        assert await client.get("order") == "accepted"


async def test_frozen_store_left_by_a_killed_owner_is_killed(tmp_path: Path) -> None:
    pid, _ = await leave_running("store", tmp_path)
    os.kill(pid, signal.SIGSTOP)
    async with running_store(EmbeddedStore(tmp_path, stop_s=0.2)) as client:
        assert await client.ping()
        assert not is_running(pid)


async def test_stop_ends_a_leftover_it_did_not_start(tmp_path: Path) -> None:
    pid, _ = await leave_running("store", tmp_path)
    await EmbeddedStore(tmp_path).stop()
    assert not is_running(pid)


async def test_store_does_not_touch_a_foreign_process_in_its_pid_file(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    async with running_store(store):
        await store.kill()
        foreign = await asyncio.create_subprocess_exec("sleep", "1000")
        (tmp_path / "store" / "valkey.pid").write_text(f"{foreign.pid}\n")
        await store.start()
        await store.stop()
        assert foreign.returncode is None
        assert is_running(foreign.pid)
        foreign.kill()
        await foreign.wait()


async def test_store_wanted_port_taken_names_port_and_setting(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        store = EmbeddedStore(tmp_path, port=port, port_setting="RUSHGATE_EMBEDDED_STORE_PORT")
        with pytest.raises(PortTaken, match=f"{port}.*RUSHGATE_EMBEDDED_STORE_PORT"):
            await store.start()
    assert processes_of(tmp_path) == []
    async with running_store(store) as client:  # free again, and the failed start holds no lock
        assert await client.ping()
        assert f":{port}/" in store.url


async def test_two_stores_run_at_once_and_two_wanting_one_port_do_not(tmp_path: Path) -> None:
    one, two = EmbeddedStore(tmp_path / "one"), EmbeddedStore(tmp_path / "two")
    async with running_store(one) as first, running_store(two) as second:
        await first.set("who", "one")
        assert await second.get("who") is None
        assert one.url != two.url
        port = int(one.url.rpartition(":")[2].partition("/")[0])
        assert port in FREE_PORTS
        with pytest.raises(PortTaken):
            await EmbeddedStore(tmp_path / "three", port=port).start()


# The ledger


async def test_ledger_is_set_up_and_stop_leaves_no_process(tmp_path: Path) -> None:
    ledger = EmbeddedLedger(tmp_path / "data")
    async with running_ledger(ledger) as dsn:
        settings = {
            "max_connections": "200",
            "shared_buffers": "256MB",
            "max_wal_size": "4GB",
            "wal_compression": "pglz",
            "listen_addresses": "",
            "fsync": "on",
            "statement_timeout": "0",
        }
        for name, value in settings.items():
            assert await run_sql(dsn, f"SHOW {name}") == value, name
        assert await run_sql(dsn, "SELECT current_database()") == "rushgate"
        psql = await asyncio.create_subprocess_exec(
            program("psql"), "-Atc", "SELECT 6 * 7", dsn, stdout=asyncio.subprocess.PIPE
        )
        assert (await psql.communicate())[0] == b"42\n"
        pid, children = ledger.pid, children_of(ledger.pid)
        assert pid is not None
        assert os.getsid(pid) == pid
        assert children
        idle = await asyncpg.connect(dsn)  # a client that does not go must not keep it from stopping
    assert not is_running(pid)
    assert not any(is_running(child) for child in children)
    assert processes_of(tmp_path) == []
    idle.terminate()
    await ledger.stop()


async def test_ledger_killed_and_started_again_keeps_what_was_committed(tmp_path: Path) -> None:
    ledger = EmbeddedLedger(tmp_path)
    async with running_ledger(ledger) as dsn:
        await run_sql(dsn, "CREATE TABLE orders AS SELECT 7 AS id")
        pid, children = ledger.pid, children_of(ledger.pid)
        await ledger.kill()
        assert not any(is_running(process) for process in (pid, *children) if process is not None)
        assert ledger.pid is None
        assert await ledger.start() == dsn
        assert await run_sql(dsn, "SELECT id FROM orders") == 7
        assert await ledger.restart() == dsn
        assert await run_sql(dsn, "SELECT id FROM orders") == 7


async def test_ledger_left_by_a_killed_owner_is_adopted_and_really_stopped(tmp_path: Path) -> None:
    pid, dsn = await leave_running("ledger", tmp_path)
    before = await run_sql(dsn, "SELECT pg_postmaster_start_time()")
    ledger = EmbeddedLedger(tmp_path)
    async with running_ledger(ledger) as again:
        assert again == dsn
        assert ledger.pid == pid
        assert await run_sql(dsn, "SELECT pg_postmaster_start_time()") == before
        children = children_of(pid)
    assert not any(is_running(process) for process in (pid, *children))


async def test_ledger_whose_owner_was_killed_while_it_was_made_comes_up(tmp_path: Path) -> None:
    def half_made(name: str) -> bool:
        return any(tmp_path.glob(f"ledger.new-*/{name}"))

    with run_owner("ledger", tmp_path) as owner:
        await until(lambda: half_made("PG_VERSION"))
        owner.kill()
    async with running_ledger(EmbeddedLedger(tmp_path)) as dsn:
        assert await run_sql(dsn, "SELECT 1") == 1
        assert not half_made("")


async def test_ledger_start_cancelled_leaves_nothing(tmp_path: Path) -> None:
    starting = asyncio.create_task(EmbeddedLedger(tmp_path).start())
    await until((tmp_path / "log").exists)
    starting.cancel()
    await asyncio.wait({starting})
    await until(lambda: processes_of(tmp_path) == [])
    async with running_ledger(EmbeddedLedger(tmp_path)) as dsn:
        assert await run_sql(dsn, "SELECT 1") == 1


async def test_ledger_adopted_while_it_shuts_down_is_started_again(tmp_path: Path) -> None:
    pid, dsn = await leave_running("ledger", tmp_path)
    connection = await asyncpg.connect(dsn)
    os.kill(pid, signal.SIGTERM)  # a smart shutdown: waits for the connection, refuses new ones
    ledger = EmbeddedLedger(tmp_path)
    starting = asyncio.create_task(ledger.start())
    await until(lambda: ledger.pid == pid)
    await connection.close()
    assert await starting == dsn
    assert not is_running(pid)
    assert await run_sql(dsn, "SELECT 1") == 1
    await ledger.stop()


@pytest.mark.parametrize("content", ["", "nonsense\n", "{pid}\n{dir}\n1\n5432\n{dir}\n\n1 1\nready\n", "{pid}\n"])
async def test_ledger_survives_a_stale_pid_file(tmp_path: Path, content: str) -> None:
    """Torn, or of a dead server whose number belongs to a living process of the same user now."""
    ledger = EmbeddedLedger(tmp_path)
    async with running_ledger(ledger) as dsn:
        await ledger.kill()
        user = SERVER_USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        foreign = await asyncio.create_subprocess_exec("sleep", "1000", user=user, cwd="/")
        stale = content.format(pid=foreign.pid, dir=tmp_path / "ledger")
        (tmp_path / "ledger" / "postmaster.pid").write_text(stale)
        assert await ledger.start() == dsn
        assert await run_sql(dsn, "SELECT 1") == 1
        await ledger.stop()
        assert is_running(foreign.pid)
        foreign.kill()
        await foreign.wait()


async def test_ledger_waits_for_backends_of_a_killed_postmaster(tmp_path: Path) -> None:
    """A busy backend outlives its postmaster; a second server on its data would corrupt it."""
    ledger = EmbeddedLedger(tmp_path)
    async with running_ledger(ledger) as dsn:
        busy = await asyncpg.connect(dsn)
        backend = busy.get_server_pid()
        os.kill(backend, signal.SIGSTOP)  # cannot notice the death of its postmaster
        assert ledger.pid is not None
        os.kill(ledger.pid, signal.SIGKILL)
        await until(lambda: ledger.pid is None)
        starting = asyncio.create_task(ledger.start())
        await until(lambda: "pre-existing shared memory" in ledger.log.read_text())
        assert not starting.done()
        os.kill(backend, signal.SIGKILL)
        assert await starting == dsn
        busy.terminate()


async def test_two_ledgers_run_at_once(tmp_path: Path) -> None:
    one, two = EmbeddedLedger(tmp_path / "one"), EmbeddedLedger(tmp_path / "two")
    try:
        first, second = await asyncio.gather(one.start(), two.start())
        await run_sql(first, "CREATE TABLE only_here ()")
        assert await run_sql(second, "SELECT to_regclass('only_here')") is None
    finally:
        await one.stop()
        await two.stop()


@pytest.mark.parametrize("name", ["d" * 120, "with space, comma & ünïcode"])
async def test_services_run_in_a_path_no_socket_can_have(tmp_path: Path, name: str) -> None:
    data_dir = tmp_path / name
    ledger = EmbeddedLedger(data_dir)
    async with running_store(EmbeddedStore(data_dir)) as client, running_ledger(ledger) as dsn:
        assert await client.config_get("dir") == {"dir": str(data_dir / "store")}
        socket_dir = str(await run_sql(dsn, "SHOW unix_socket_directories"))
        assert stat.S_IMODE(os.stat(socket_dir).st_mode) == 0o700  # it lets in whoever reaches it
        await ledger.kill()
        assert await ledger.start() == dsn
        assert await run_sql(dsn, "SELECT 1") == 1
    assert not exists(socket_dir)
    assert processes_of(tmp_path) == []


async def test_ledger_works_below_a_private_directory_and_opens_it_only_to_pass(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    ledger = EmbeddedLedger(private / "data")
    async with running_ledger(ledger):
        mode = stat.S_IMODE(private.stat().st_mode)
        assert mode == (0o701 if os.geteuid() == 0 else 0o700)
        private.chmod(0o700)  # as pytest does to its base directory at each run: the server goes on,
    assert processes_of(tmp_path) == []  # and is stopped all the same


# The lock


async def test_second_owner_of_a_data_dir_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    with run_owner("store", tmp_path) as owner:
        assert owner.stdout is not None
        pid = int((await asyncio.to_thread(owner.stdout.readline)).split()[0])
        for second in (EmbeddedStore(tmp_path), EmbeddedLedger(tmp_path)):
            with pytest.raises(DataDirBusy, match=str(owner.pid)):
                await second.start()
            with pytest.raises(DataDirBusy):
                await second.stop()
        assert is_running(pid)
        owner.kill()
    await EmbeddedStore(tmp_path).stop()
    assert not is_running(pid)


def test_lock_is_shared_within_a_process_and_freed_by_its_last_holder(tmp_path: Path) -> None:
    code = "import sys; from ops.embedded import DataDirLock; DataDirLock(sys.argv[1]).acquire()"

    def free_for_others() -> bool:
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, check=False)
        return done.returncode == 0

    first, second = DataDirLock(tmp_path), DataDirLock(tmp_path)
    first.acquire()
    first.acquire()
    second.acquire()
    first.release()
    first.release()
    assert not free_for_others()
    second.release()
    assert free_for_others()
