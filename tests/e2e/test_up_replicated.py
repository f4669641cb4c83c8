"""`rushgate up` at level `replicated`: a replica of the embedded store beside it, kept alive as all services are."""

import os
import signal
from pathlib import Path

from redis import Redis

from tests.e2e.support import Client, Reply, Up, living, until


def replicas(data: Path) -> list[list[str]]:
    return [argv for argv in living(data) if any("/replica-" in part for part in argv)]


def ordered(client: Client, campaign: str, key: str) -> Reply:
    """The first 202 of the key."""
    found: Reply = until(lambda: reply if (reply := client.order(campaign, "b", key)).status == 202 else None)
    return found


def pid_of(url: str) -> int:
    with Redis.from_url(url, socket_timeout=5) as store:
        return int(store.info("server")["process_id"])


def test_up_replicated_starts_a_replica_and_brings_it_and_the_store_back(tmp_path: Path) -> None:
    data = tmp_path / "d"
    up = Up(data, "--port", "0", env={"RUSHGATE_DURABILITY": "replicated"})
    try:
        client = up.wait_ready().client
        campaign = client.sale({"red": 9})
        assert client.order(campaign, "b", "k").json["durability"] == "replicated"
        assert len(replicas(data)) == 1
        assert (data / "replica-1" / "appendonlydir").is_dir()
        with Redis.from_url(up.ready["store"], socket_timeout=5) as store:
            [follower] = store.execute_command("ROLE")[2]
        at = up.ready["store"].rpartition(":")[0] + f":{follower[1].decode()}/0"
        os.kill(pid_of(at), signal.SIGKILL)
        until(lambda: client.order(campaign, "b", "k2").status == 503)
        ordered(client, campaign, "k3")
        os.kill(pid_of(up.ready["store"]), signal.SIGKILL)
        assert ordered(client, campaign, "k").headers["idempotent-replayed"] == "true"
        assert client.settled_audit(campaign)["ok"]
    finally:
        up.end()
    assert living(data) == []
