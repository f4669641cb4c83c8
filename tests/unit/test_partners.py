"""The partners over real HTTP, against a gateway's stand-in that records what they call: nothing waits by the clock."""

import argparse
import asyncio
import base64
import json
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from core.signing import SignatureInvalid, Signer
from loadtest.client import fetch
from loadtest.exchange import Answer, Target
from loadtest.history_final import PartnerReport, PartnerSaw
from loadtest.partners import serve_partners
from loadtest.partners_command import add_arguments, inherited, listen, options_from
from loadtest.partners_options import Buyers, Conduct, PartnersOptions
from loadtest.partners_signing import PartnerSigner
from loadtest.partners_work import decide
from ops.check_partners import partners_said, version_of

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"another one, of payment's only!!").decode()
CHANNEL_KEY = "key-of-the-channel-app"
LATE_MS = 50.0

PAYERS = Buyers(pay=1, cancel=0, ignore=0, pay_late=0, think_ms=0)
CANCELLERS = Buyers(pay=0, cancel=1, ignore=0, pay_late=0, think_ms=0)
IGNORERS = Buyers(pay=0, cancel=0, ignore=1, pay_late=0)
LATE = Buyers(pay=0, cancel=0, ignore=0, pay_late=1, late_ms=LATE_MS)


class Call:
    """One request that the stand-in got; `at_s` is the wall clock."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.path, self.headers, self.raw = path, headers, body
        self.body: dict[str, Any] = json.loads(body)
        self.at_s = time.time()

    def message_id(self, secret: str = SECRET) -> str:
        """Checks the signature with the gateway's own code."""
        return Signer([secret]).verify(self.headers, self.raw, self.at_s)


class Gateway:
    """Records calls and answers them with `answer(call)`: a status, or None to close the connection."""

    def __init__(self, answer: Callable[[Call], int | None] = lambda call: 200) -> None:
        self.answer = answer
        self.calls: list[Call] = []
        self._news = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> "Gateway":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def wait(self, count: int) -> list[Call]:
        """The calls so far, at least `count`."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: len(self.calls) >= count)
        return self.calls

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:-2])}
                call = Call(head[0].split(" ")[1], headers, await reader.readexactly(int(headers["content-length"])))
                status = self.answer(call)
                async with self._news:
                    self.calls.append(call)
                    self._news.notify_all()
                if status is None:
                    break
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)


class Shop:
    """The gateway's side of the partners: sends signed messages, reads and changes their state."""

    def __init__(self, url: str) -> None:
        self.target = Target.from_url(url)

    async def send(
        self,
        partner: str,
        topic: str,
        order_id: str = "o1",
        message_id: str = "",
        data: dict[str, object] | None = None,
        secret: str = SECRET,
        at_s: float = 0,
        path: str = "",
        timeout_s: float = 5.0,
    ) -> Answer:
        message_id = message_id or f"{order_id}-{topic}"
        message = {"message_id": message_id, "topic": topic, "order_id": order_id, "shard": 3, "data": data or {}}
        body = json.dumps(message).encode()
        signed = Signer([secret]).sign(message_id, int(at_s or time.time()), body)
        return await self.call("POST", path or f"/{partner}/{topic}", body, signed, timeout_s)

    async def ask_payment(self, order_id: str = "o1", pay_by_s: float = 0, message_id: str = "", **more: Any) -> Answer:
        pay_by = datetime.fromtimestamp(pay_by_s or time.time() + 900, UTC).isoformat()
        data = {"amount": 129_900, "currency": "CNY", "pay_by": pay_by, "channel": "app"}
        return await self.send("payment", "payment", order_id, message_id, data, **more)

    async def call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, timeout_s: float = 5.0
    ) -> Answer:
        lines = "".join(f"{n}: {v}\r\n" for n, v in (headers or {}).items())
        head = f"{method} {path} HTTP/1.1\r\nhost: partners\r\n{lines}content-length: {len(body)}\r\n\r\n"
        return await fetch(self.target, head.encode() + body, timeout_s)

    async def change(self, what: str, **values: object) -> Answer:
        return await self.call("PUT", f"/control/{what}", json.dumps(values).encode())

    async def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((await self.call("GET", "/control")).body)
        return state

    async def tally(self, partner: str, topic: str) -> dict[str, int]:
        found: dict[str, int] = (await self.state())["partners"][partner]["topics"].get(topic, {})
        return found

    async def effects(self, order_id: str = "o1") -> list[str]:
        body = json.loads((await self.call("GET", f"/control/effects?order_id={order_id}")).body)
        assert body["order_id"] == order_id
        return [effect["effect"] for effect in body["effects"]]


@asynccontextmanager
async def partners(gateway_url: str, **changed: Any) -> AsyncIterator[Shop]:
    values: dict[str, Any] = {
        "gateway_url": gateway_url,
        "channel_keys": {"web": "key-of-the-channel-web", "app": CHANNEL_KEY},
        "secrets": {"*": [SECRET]},
        "buyers": PAYERS,
        "step_ms": 0,
        "backoff_ms": 1,
        "backoff_max_ms": 5,
    }
    with listen("127.0.0.1", 0) as sock:
        serving = asyncio.create_task(serve_partners(PartnersOptions(**values | changed), sock))
        try:
            yield Shop(f"http://127.0.0.1:{sock.getsockname()[1]}")
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving


async def test_payer_sends_a_signed_callback() -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        assert (await shop.ask_payment()).body == b'{"status":"done"}'
        (call,) = await gateway.wait(1)
        payment_no = call.body["payment_no"]
        assert call.path == "/v1/payments/callback"
        assert call.message_id() == payment_no
        assert call.body == {
            "payment_no": payment_no, "order_id": "o1", "amount": 129_900, "currency": "CNY", "status": "paid",
            "paid_at": call.body["paid_at"],
        }  # fmt: skip
        assert datetime.fromisoformat(call.body["paid_at"]).timestamp() == pytest.approx(call.at_s, abs=5)
        assert await shop.effects() == ["payment", "paid"]


async def test_control_tampered_callback_is_noticed() -> None:
    """Control: if a wrong signature passed here, the tests above would prove nothing."""
    async with Gateway() as gateway, partners(gateway.url) as shop:
        await shop.ask_payment()
        (call,) = await gateway.wait(1)
        call.raw = call.raw.replace(b"129900", b"1")
        with pytest.raises(SignatureInvalid):
            call.message_id()


async def test_each_partner_may_have_its_own_secret() -> None:
    async with Gateway() as gateway, partners(gateway.url, secrets={"*": [SECRET], "payment": [OTHER_SECRET]}) as shop:
        assert (await shop.ask_payment()).status == 401
        assert (await shop.ask_payment(secret=OTHER_SECRET)).status == 200
        assert (await shop.send("channel", "paid")).status == 200
        (call,) = await gateway.wait(1)
        assert call.message_id(OTHER_SECRET)


async def test_repeated_id_is_worked_on_once() -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        answers = await asyncio.gather(*(shop.ask_payment() for _ in range(20)))
        assert Counter(a.body for a in answers) == {b'{"status":"done"}': 1, b'{"status":"repeated"}': 19}
        assert {a.status for a in answers} == {200}
        await shop.send("warehouse", "warehouse")
        await gateway.wait(4)
        assert len(gateway.calls) == 4
        assert await shop.effects() == ["payment", "paid", "warehouse", "pick", "ship", "receive"]
        tally = await shop.tally("payment", "payment")
        assert (tally["received"], tally["done"], tally["repeated"]) == (20, 1, 19)


async def test_repeat_during_the_latency_is_worked_on_once() -> None:
    conduct = {"payment": Conduct(latency_ms=30, jitter_ms=20)}
    async with Gateway() as gateway, partners(gateway.url, conduct=conduct) as shop:
        answers = await asyncio.gather(*(shop.ask_payment() for _ in range(10)))
        assert sum(a.body == b'{"status":"done"}' for a in answers) == 1
        assert min(a.answered_s - (a.sent_s or 0) for a in answers) >= 0.009
        assert (await shop.tally("payment", "payment"))["done"] == 1


async def test_ids_beyond_the_bound_are_forgotten_least_recent_first() -> None:
    async with Gateway() as gateway, partners(gateway.url, remember=2) as shop:
        for message_id in ("a", "b", "a", "c"):  # the repeat of `a` makes `b` the least recent
            await shop.send("notification", "paid", message_id=message_id)
        assert (await shop.send("notification", "paid", message_id="a")).body == b'{"status":"repeated"}'
        assert (await shop.send("notification", "paid", message_id="b")).body == b'{"status":"done"}'
        assert (await shop.state())["remembered"] == 2


async def test_failure_answers_500_and_does_nothing() -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        assert (await shop.change("payment", failure=1)).status == 200
        assert (await shop.ask_payment()).status == 500
        assert await shop.effects() == []
        await shop.change("payment", failure=0)
        assert (await shop.ask_payment()).body == b'{"status":"done"}'
        assert (await shop.tally("payment", "payment"))["failed"] == 1


@pytest.mark.parametrize(("hold_ms", "failure"), [(0, "closed"), (20, "closed"), (60_000, "timeout")])
async def test_lost_answer_has_done_the_work(hold_ms: float, failure: str) -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        await shop.change("payment", lost_answer=1, lost_hold_ms=hold_ms)
        lost = await shop.ask_payment(timeout_s=0.2 if failure == "timeout" else 5.0)
        assert (lost.status, lost.failure) == (0, failure)
        await gateway.wait(1)
        await shop.change("payment", lost_answer=0)
        assert (await shop.ask_payment()).body == b'{"status":"repeated"}'
        assert await shop.effects() == ["payment", "paid"]
        assert (await shop.tally("payment", "payment"))["lost"] == 1


async def test_duplicate_callbacks_are_the_same_message() -> None:
    async with Gateway() as gateway, partners(gateway.url, conduct={"payment": Conduct(duplicate=1)}) as shop:
        await shop.ask_payment()
        first, second = await gateway.wait(2)
        assert first.message_id() == second.message_id()
        assert first.raw == second.raw
        assert await shop.effects() == ["payment", "paid"]


async def test_away_partner_answers_503_until_it_is_back() -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        await shop.change("payment", away=True)
        assert (await shop.ask_payment()).status == 503
        assert (await shop.send("channel", "paid")).status == 200
        await shop.change("payment", away=False)
        assert (await shop.ask_payment()).status == 200
        assert (await shop.state())["partners"]["payment"]["away"] == 1


async def test_rates_are_met_and_every_order_is_paid_once_in_spite_of_them() -> None:
    conduct = {"payment": Conduct(failure=0.2, lost_answer=0.2, duplicate=0.2)}
    async with Gateway() as gateway, partners(gateway.url, conduct=conduct) as shop:

        async def until_answered(order_id: str) -> int:
            for attempt in range(1, 50):
                if (await shop.ask_payment(order_id)).status == 200:
                    return attempt
            raise AssertionError("never answered")

        attempts = [await until_answered(f"o{n}") for n in range(200)]
        tally = await shop.tally("payment", "payment")
        assert tally["received"] == sum(attempts)
        assert tally["done"] == 200
        assert tally["failed"] / tally["received"] == pytest.approx(0.2, abs=0.08)
        assert tally["lost"] / (tally["done"] + tally["repeated"]) == pytest.approx(0.2, abs=0.08)
        calls = await gateway.wait(tally["callbacks_sent"])
        assert len({c.message_id() for c in calls}) == 200
        assert len(calls) / 200 == pytest.approx(1.2, abs=0.1)


def test_decisions_are_seeded_and_have_their_shares() -> None:
    buyers, orders = Buyers(), [f"order-{n}" for n in range(20_000)]
    decisions = [decide(1, order, buyers) for order in orders]
    shares = {name: count / len(orders) for name, count in Counter(d for d, _ in decisions).items()}
    assert shares == pytest.approx({"pay": 0.70, "cancel": 0.10, "ignore": 0.15, "pay_late": 0.05}, abs=0.01)
    assert decisions == [decide(1, order, buyers) for order in orders]
    assert decisions != [decide(2, order, buyers) for order in orders]
    assert all(0 <= pace < 1 for _, pace in decisions)


@pytest.mark.parametrize(
    ("buyers", "name"), [(PAYERS, "pay"), (CANCELLERS, "cancel"), (IGNORERS, "ignore"), (LATE, "pay_late")]
)
def test_share_of_one_leaves_no_other_decision(buyers: Buyers, name: str) -> None:
    assert {decide(1, f"order-{n}", buyers)[0] for n in range(1_000)} == {name}


async def test_late_payer_pays_after_pay_by() -> None:
    async with Gateway() as gateway, partners(gateway.url, buyers=LATE) as shop:
        pay_by_s = time.time() + 0.25
        await shop.ask_payment(pay_by_s=pay_by_s)
        (call,) = await gateway.wait(1)
        due_s = pay_by_s + LATE_MS / 1_000
        assert call.at_s >= due_s - 1e-5  # the message carries microseconds
        assert datetime.fromisoformat(call.body["paid_at"]).timestamp() >= due_s - 0.001


async def test_payer_pays_before_pay_by_however_slow_he_thinks() -> None:
    buyers = Buyers(pay=1, cancel=0, ignore=0, pay_late=0, think_ms=600_000)
    async with Gateway() as gateway, partners(gateway.url, buyers=buyers) as shop:
        pay_by_s = time.time() + 1.0
        await shop.ask_payment(pay_by_s=pay_by_s)
        (call,) = await gateway.wait(1)
        assert call.at_s < pay_by_s


@pytest.mark.parametrize("status", [200, 409])
async def test_canceller_calls_through_the_channel_and_takes_no_for_an_answer(status: int) -> None:
    async with Gateway(lambda call: status) as gateway, partners(gateway.url, buyers=CANCELLERS) as shop:
        await shop.ask_payment("0123abcd")
        (call,) = await gateway.wait(1)
        assert call.path == "/v1/orders/0123abcd/cancel"
        assert call.headers["authorization"] == f"Bearer {CHANNEL_KEY}"
        await settled(shop)
        assert len(gateway.calls) == 1
        tally = await shop.tally("payment", "payment")
        assert (tally["callbacks_taken"], tally["callbacks_refused"]) == ((1, 0) if status == 200 else (0, 1))


async def settled(shop: Shop) -> None:
    """Until no callback is pending: asked over HTTP, answer by answer."""
    async with asyncio.timeout(10):
        while (await shop.state())["pending_callbacks"]:  # noqa: ASYNC110 - another process' state, no event to wait for
            await asyncio.sleep(0)


async def test_ignorer_does_nothing() -> None:
    async with Gateway() as gateway, partners(gateway.url, buyers=IGNORERS) as shop:
        await shop.ask_payment()
        assert (await shop.state())["pending_callbacks"] == 0
        assert await shop.effects() == ["payment"]


async def test_callback_is_sent_again_until_it_is_taken() -> None:
    answers: list[int | None] = [503, 500, None, 404, 409, 202]
    async with Gateway(lambda call: answers.pop(0)) as gateway, partners(gateway.url) as shop:
        await shop.ask_payment()
        calls = await gateway.wait(6)
        assert len({c.message_id() for c in calls}) == 1
        assert len({c.raw for c in calls}) == 1
        await settled(shop)
        tally = await shop.tally("payment", "payment")
        assert (tally["callbacks_sent"], tally["callbacks_taken"]) == (6, 1)


async def test_callback_is_given_up_after_the_last_attempt() -> None:
    async with Gateway(lambda call: 500) as gateway, partners(gateway.url, attempts=3) as shop:
        await shop.send("warehouse", "warehouse")
        await gateway.wait(3)
        await settled(shop)
        assert {c.body["action"] for c in gateway.calls} == {"pick"}  # what was never picked is never shipped
        tally = await shop.tally("warehouse", "warehouse")
        assert (tally["callbacks_sent"], tally["callbacks_given_up"]) == (3, 1)


async def test_warehouse_ships_after_its_pick_was_taken_and_delivers_after_its_ship() -> None:
    answers = [500, 200, 200, 200]
    async with Gateway(lambda call: answers.pop(0)) as gateway, partners(gateway.url) as shop:
        await shop.send("warehouse", "warehouse")
        calls = await gateway.wait(4)
        assert [c.body["action"] for c in calls] == ["pick", "pick", "ship", "receive"]
        assert {c.path for c in calls} == {"/v1/partners/warehouse/callback"}
        assert calls[0].message_id() == calls[1].message_id() != calls[2].message_id()
        assert set(calls[0].body) == {"order_id", "action", "at"}


async def test_delivery_of_a_parcel_that_was_sent_back_is_not_reported_for_ever() -> None:
    async with (
        Gateway(lambda call: 409 if call.body["action"] == "receive" else 200) as gateway,
        partners(gateway.url) as shop,
    ):
        await shop.send("warehouse", "warehouse")
        await gateway.wait(3)
        await settled(shop)
        assert len(gateway.calls) == 3
        assert (await shop.tally("warehouse", "warehouse"))["callbacks_refused"] == 1


@pytest.mark.parametrize(
    ("partner", "topic"),
    [("provisioning", "provision"), ("provisioning", "unprovision"), ("billing", "bill"), ("billing", "unbill")],
)
async def test_provisioning_and_billing_report_back(partner: str, topic: str) -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        await shop.send(partner, topic)
        (call,) = await gateway.wait(1)
        assert call.path == f"/v1/partners/{partner}/callback"
        assert (call.body["order_id"], call.body["action"]) == ("o1", topic)
        assert call.message_id()


async def test_refund_is_paid_back_under_its_own_number() -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        await shop.ask_payment()
        await gateway.wait(1)
        await shop.send("payment", "refund", message_id="r1", data={"amount": 5, "currency": "CNY"})
        await gateway.wait(2)
        named = {"amount": 6, "currency": "CNY", "refund_no": "R-2"}
        await shop.send("payment", "refund", message_id="r2", data=named)
        paid, first, second = await gateway.wait(3)
        assert [c.body["status"] for c in (paid, first, second)] == ["paid", "refunded", "refunded"]
        assert (first.body["amount"], second.body["amount"], second.body["payment_no"]) == (5, 6, "R-2")
        assert len({c.body["payment_no"] for c in gateway.calls}) == 3


async def test_full_queue_refuses_before_the_work_and_forgets_nothing() -> None:
    buyers = Buyers(pay=1, cancel=0, ignore=0, pay_late=0, think_ms=600_000)
    async with Gateway() as gateway, partners(gateway.url, buyers=buyers, pending_max=4) as shop:
        answers = [await shop.ask_payment(f"o{n}") for n in range(6)]
        assert [a.status for a in answers] == [200, 200, 200, 200, 503, 503]
        assert await shop.effects("o5") == []
        assert (await shop.tally("payment", "payment"))["full"] == 2
        assert (await shop.send("channel", "paid")).status == 200  # calls nobody back
        assert (await shop.send("warehouse", "warehouse")).status == 503
        state = await shop.state()
        assert (state["pending_callbacks"], state["due_callbacks"]) == (4, 0)  # all of them later
        assert gateway.calls == []


async def test_queue_is_empty_again_after_duplicates_and_chains() -> None:
    conduct = {name: Conduct(duplicate=1) for name in ("payment", "warehouse")}
    async with Gateway() as gateway, partners(gateway.url, conduct=conduct, pending_max=6) as shop:
        assert (await shop.send("warehouse", "warehouse")).status == 200
        await gateway.wait(6)
        await settled(shop)
        assert Counter(c.body["action"] for c in gateway.calls) == {"pick": 2, "ship": 2, "receive": 2}
        assert (await shop.state())["due_callbacks"] == 0
        assert (await shop.ask_payment()).status == 200


async def test_message_that_is_not_ours_is_refused() -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        assert (await shop.ask_payment(secret=OTHER_SECRET)).status == 401
        assert (await shop.ask_payment(at_s=time.time() - 310)).status == 401
        assert (await shop.call("POST", "/payment/payment", b"{}")).status == 401
        assert (await shop.ask_payment(path="/payment/refund")).status == 400
        assert (await shop.send("warehouse", "bill")).status == 400
        assert (await shop.send("payment", "payment", data={"amount": 1})).status == 422
        assert (await shop.send("nobody", "x")).status == 404
        assert (await shop.call("GET", "/payment/payment")).status == 405
        assert (await shop.state())["partners"]["payment"]["rejected"] == 4
        assert await shop.effects() == []


async def test_control_changes_only_what_it_names_and_refuses_nonsense() -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        await shop.change("billing", failure=0.5)
        answer = await shop.change("billing", latency_ms=7)
        assert (json.loads(answer.body)["failure"], json.loads(answer.body)["latency_ms"]) == (0.5, 7)
        for bad in ({"failure": 2}, {"failure": "x"}, {"unknown": 1}):
            assert (await shop.change("billing", **bad)).status == 422
        assert (await shop.call("PUT", "/control/billing", b"\xff")).status == 422
        assert (await shop.change("buyers", pay=0.5)).status == 422
        assert (await shop.change("buyers", pay=0.5, cancel=0.5)).status == 200
        assert (await shop.change("nobody", away=True)).status == 404
        assert (await shop.state())["partners"]["billing"]["conduct"]["failure"] == 0.5


@pytest.mark.parametrize(
    ("wire", "status"),
    [(b"NONSENSE\r\n\r\n", 400), (b"POST /channel/x HTTP/1.1\r\ncontent-length: 99999\r\n\r\n" + b"x" * 70_000, 413)],
)
async def test_request_that_cannot_be_read_is_refused_and_closed(wire: bytes, status: int) -> None:
    async with Gateway() as gateway, partners(gateway.url) as shop:
        assert (await fetch(shop.target, wire, 5.0)).status == status


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with Gateway() as gateway, partners(gateway.url, conduct={"channel": Conduct(latency_ms=20)}) as shop:
        body = b'{"message_id":"m","topic":"x","order_id":"o1"}'
        signed = PartnerSigner([SECRET]).headers("m", int(time.time()), body)
        post = b"POST /channel/x HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n%b" % (signed, len(body), body)
        get = b"GET /control/effects?order_id=o%d HTTP/1.1\r\n\r\n"
        reader, writer = await asyncio.open_connection(shop.target.host, shop.target.port)
        try:
            writer.write(post + b"".join(get % n for n in range(3_000)))
            bodies = []
            for _ in range(3_001):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                bodies.append(json.loads(await reader.readexactly(length)))
        finally:
            writer.transport.abort()
        assert bodies[0] == {"status": "done"}
        assert [b["order_id"] for b in bodies[1:]] == [f"o{n}" for n in range(3_000)]


def test_options_come_from_flags_and_environment() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    environ = {
        "RUSHGATE_PARTNER_SECRETS": f"{SECRET}, payment={OTHER_SECRET},payment={SECRET}",
        "RUSHGATE_CHANNEL_KEYS": "app=first-key,app.2=second-key,web=web-key",
    }
    flags = ["--failure", "0.2", "--pay", "0.85", "--ignore", "0", "--step-ms", "7"]
    options = options_from(parser.parse_args(flags), environ)
    assert options.step_ms == 7
    assert options.secrets == {"*": [SECRET], "payment": [OTHER_SECRET, SECRET]}
    assert options.channel_keys == {"app": "first-key", "web": "web-key"}
    assert options.conduct["billing"].failure == 0.2
    assert options.buyers.pay == 0.85


@pytest.mark.parametrize(
    ("flags", "environ", "why"),
    [
        ([], {"RUSHGATE_CHANNEL_KEY": "k"}, "RUSHGATE_PARTNER_SECRETS is not set"),
        ([], {"RUSHGATE_CHANNEL_KEY": "k", "RUSHGATE_PARTNER_SECRETS": "bare"}, "expected whsec_"),
        ([], {"RUSHGATE_PARTNER_SECRETS": SECRET}, "RUSHGATE_CHANNEL_KEY must be set"),
        (["--pay", "0.9"], {"RUSHGATE_CHANNEL_KEY": "k", "RUSHGATE_PARTNER_SECRETS": SECRET}, "add up to 1"),
        (["--failure", "2"], {"RUSHGATE_CHANNEL_KEY": "k", "RUSHGATE_PARTNER_SECRETS": SECRET}, "failure"),
    ],
)
def test_bad_flags_and_environment_are_named(flags: list[str], environ: dict[str, str], why: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ValueError, match=why):
        options_from(parser.parse_args(flags), environ)


def test_inherited_socket_must_be_one_that_listens() -> None:
    with listen("127.0.0.1", 0) as sock:
        heir = inherited(os.dup(sock.fileno()))
        with heir:
            assert heir.getsockname() == sock.getsockname()
            assert not heir.getblocking()
    with socket.socket() as deaf, pytest.raises(OSError, match="does not listen"):
        inherited(os.dup(deaf.fileno()))
    with pytest.raises(OSError, match="--fd 999999: is no socket"):
        inherited(999_999)


@pytest.mark.parametrize("secrets", [{"*": ["whsec_short"]}, {"*": []}, {"*": ["no prefix"]}, {"nobody": [SECRET]}, {}])
async def test_bad_secrets_stop_the_server_before_it_serves(secrets: dict[str, list[str]]) -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(ValueError, match="secrets"):
        await serve_partners(
            PartnersOptions(gateway_url="http://127.0.0.1:1", channel_keys={"app": "k"}, secrets=secrets), sock
        )


async def test_records_tell_each_message_and_report_by_its_id() -> None:
    """What the history checker compares with the ledger."""
    async with Gateway() as gateway, partners(gateway.url) as shop:
        refund = {"amount": 6, "currency": "CNY", "refund_no": "ref_3"}
        ids = [f"msg_{'0' * 32}_{version}_refund" for version in (3, 4)]
        for message_id, data in (
            (ids[0], refund),
            (ids[0], refund),
            (ids[0], refund | {"amount": 7}),
            (ids[1], refund),
        ):
            await shop.send("payment", "refund", message_id=message_id, data=data)
        await gateway.wait(2)
        await settled(shop)
        saws, reports = partners_said((await shop.call("GET", "/control/records")).body)
        assert saws == [
            PartnerSaw("o1", 3, "refund", ids[0], 3, 1, 6, "ref_3", 1),
            PartnerSaw("o1", 4, "refund", ids[1], 1, 1, 6, "ref_3", 0),
        ]
        assert reports == [PartnerReport("o1", "payment", "refunded", "ref_3", 6, 2)]


async def test_records_that_forgot_something_are_none() -> None:
    async with Gateway() as gateway, partners(gateway.url, remember=2) as shop:
        for n in range(3):
            await shop.send("notification", "notify", f"o{n}")
        assert partners_said((await shop.call("GET", "/control/records")).body) == (None, None)


def test_version_of_a_foreign_id_is_none_of_ours() -> None:
    assert [version_of(i) for i in ("msg_aa_12_bill", "msg_aa_x_bill", "o1", "")] == [12, 0, 0, 0]
