"""Who comes to a flash sale: buyers, bots that hammer, channels that send batches. Needs locust.

Every order goes on record before it is sent, and its answer when it is there, so that the run can be judged.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import gevent  # type: ignore[import-untyped] # it has none
import msgspec
from locust import FastHttpUser, constant, task
from locust.exception import StopUser

from loadtest.campaign import orders_path
from loadtest.history import Items
from loadtest.locust_answers import Told, View, line_told, move_told, order_told, read_told, view_told
from loadtest.locust_run import Run, Wanted

JSON, NDJSON = "application/json", "application/x-ndjson"
ANSWER_S = 10.0  # so long an answer may take; no answer by then is a hang, and a failure
LONG_POLL_S = 3
LOOKS_MAX = 5  # at one order
COUNTDOWN_S = 2.0  # between two looks at the countdown
REACTION_S = 0.25  # mean time from T0 to the click: an exponential
DOUBLE_CLICKS = 0.3  # share of the buyers who click again before they have their answer
FAULTS_MAX = 8  # how often the same request is sent again after a fault
BACK_OFF_S = 2.0  # the longest wait that a Retry-After is followed for

encode = msgspec.json.Encoder().encode
dice = random.Random()  # noqa: S311 - a crowd, no secret

run: Run | None = None  # of this process, while there is one


def here() -> Run:
    """The run. Raises StopUser when it is over, or has recorded all that it may."""
    if run is None or run.closed or run.full:
        raise StopUser()
    return run


class Shopper(FastHttpUser):
    """What all who come can do."""

    abstract = True
    network_timeout = ANSWER_S
    connection_timeout = ANSWER_S
    wait_time = constant(0)

    def call(
        self,
        method: str,
        path: str,
        what: str,
        read: Callable[[int, Mapping[str, str], bytes], Told],
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Told:
        """One request, in the statistics under the name of its outcome."""
        data: Any = body  # locust passes bytes on as they are, whatever it says of their type
        sent = {"Authorization": f"Bearer {here().secret.channel_key}", **(headers or {})}
        with self.client.request(
            method, path, name=what, data=data, headers=sent, catch_response=True, allow_redirects=False
        ) as response:
            told = read(response.status_code, _lower(response.headers), response.content or b"")
            response.request_meta["name"] = told.name
            if told.failure:
                response.failure(told.failure)
            else:
                response.success()
        return told

    def order(self, wanted: Wanted, body: bytes | None = None, wrong: bool = False) -> Told:
        """One attempt, on record."""
        ours = here()
        body = encode(wanted.fields()) if body is None else body
        n = ours.ask(wanted, body)
        told = self.call(
            "POST",
            orders_path(ours.plan.campaign),
            "order",
            lambda status, headers, answer: order_told(status, headers, answer, wrong),
            body,
            {"Idempotency-Key": wanted.key, "Content-Type": JSON},
        )
        ours.told(n, told)
        return told

    def until_known(self, attempt: Callable[[], Told]) -> Told:
        """The same request again until somebody decided: at most FAULTS_MAX times, as Retry-After says."""
        for repeat in range(FAULTS_MAX):
            told = attempt()
            if told.result != "unknown" and told.status != 429:
                break
            wait_s = told.retry_after_s or 0.05 * 2**repeat
            gevent.sleep(min(wait_s, BACK_OFF_S) * dice.uniform(0.5, 1.0))
        return told

    def basket(self) -> Items:
        """One or two units, within what a buyer may have."""
        plan = here().plan
        units = 2 if plan.limit != 1 and dice.random() < 0.2 else 1
        return ((dice.choice(plan.skus), units),)

    def pause(self, mean_s: float) -> None:
        """An exponential pause, at most five times its mean."""
        gevent.sleep(min(dice.expovariate(1 / mean_s), 5 * mean_s) if mean_s > 0 else 0)

    def until_t0(self) -> None:
        """The sale begins."""
        while (left_s := here().until_t0_s()) > 0:
            gevent.sleep(min(left_s, 1.0))


class Buyer(Shopper):
    """Browses the countdown, clicks at T0, often twice; looks after the order, pays, cancels; comes back after a no."""

    @task
    def live(self) -> None:
        """The life of one buyer; the next one is another person."""
        self._browse()
        self.pause(REACTION_S)
        ours = here()
        wanted = ours.want(self.basket())
        for _ in range(1 + ours.plan.come_back):
            told = self._click(wanted)
            if told.accepted:
                self._look_after(told.order_id)
                break
            if told.code not in ("sold_out", "over_limit", "not_open", "paused"):
                break
            self.pause(2 * ours.plan.pause_s)  # somebody may cancel
            wanted = here().want(self.basket(), like=wanted)
        self.pause(ours.plan.pause_s)

    def _browse(self) -> None:
        while (left_s := here().until_t0_s()) > 0:
            path = f"/v1/campaigns/{here().plan.campaign}"
            self.call("GET", path, "countdown", lambda *answer: read_told("countdown", *answer))
            left_s = here().until_t0_s()
            gevent.sleep(max(0.0, min(left_s, dice.uniform(0.5, 1.5) * COUNTDOWN_S)))

    def _click(self, wanted: Wanted) -> Told:
        """The outcome, however often it took; some click again with the same key meanwhile."""
        body = encode(wanted.fields())
        again = None
        if dice.random() < DOUBLE_CLICKS:
            again = gevent.spawn_later(dice.uniform(0.0, 0.3), self._again, wanted, body)
        try:
            return self.until_known(lambda: self.order(wanted, body))
        finally:
            if again is not None:
                again.join()

    def _again(self, wanted: Wanted, body: bytes) -> None:
        with contextlib.suppress(StopUser):  # the run is over: nobody clicks any more
            self.order(wanted, body)

    def _look_after(self, order_id: str) -> None:
        view = self._look(order_id, 0)
        point, plan = dice.random(), here().plan
        if view is None or view.version > 1:
            return
        if point < plan.cancel:
            self._move("cancel", order_id, f"/v1/orders/{order_id}/cancel", b"", {})
        elif point < plan.cancel + plan.pay and here().signer is not None:
            self._pay(view)
        else:
            return  # neither: the order expires
        self._look(order_id, view.version)

    def _look(self, order_id: str, version: int) -> View | None:
        """The order as it stands; beyond `version` if that comes within a few long polls."""
        found: View | None = None
        wait = f"?wait={LONG_POLL_S}&version={version}" if version and dice.random() < 0.5 else ""

        def read(status: int, headers: Mapping[str, str], body: bytes) -> Told:
            nonlocal found
            told, found = view_told(status, headers, body, order_id)
            return told._replace(name=told.name.replace("look", "long poll", 1)) if wait else told

        for _ in range(LOOKS_MAX):
            self.until_known(lambda: self.call("GET", f"/v1/orders/{order_id}{wait}", "look", read))
            if found is not None and found.version > version:
                return found
            if not wait:
                self.pause(0.5)
        return found

    def _pay(self, view: View) -> None:
        """The payment centre's report, signed; some are sent twice."""
        ours = here()
        assert ours.signer is not None  # noqa: S101 - looked at before
        number = f"pay-{view.order_id}"
        body = encode({
            "payment_no": number, "order_id": view.order_id, "amount": view.amount, "currency": view.currency,
            "status": "paid", "paid_at": datetime.now(UTC).isoformat(),
        })  # fmt: skip
        signed = ours.signer.headers(number, int(time.time()), body).decode()
        headers = dict(line.split(": ", 1) for line in signed.splitlines()) | {"Content-Type": JSON}
        for _ in range(2 if dice.random() < 0.1 else 1):
            self._move("pay", view.order_id, "/v1/payments/callback", body, headers)

    def _move(self, op: str, order_id: str, path: str, body: bytes, headers: Mapping[str, str]) -> Told:
        def attempt() -> Told:
            ours = here()
            n = ours.act(op, order_id)
            told = self.call("POST", path, op, lambda *answer: move_told(op, *answer), body, headers)
            ours.told(n, told)
            return told

        return self.until_known(attempt)


class Bot(Shopper):
    """One buyer with many keys, as fast as it can; now and then what is no order at all."""

    _who: Wanted | None = None

    @task
    def hammer(self) -> None:
        """One request, and no pause worth the name."""
        self.until_t0()
        ours, point = here(), dice.random()
        who = self._who = self._who or ours.want(())
        if point < 0.03:
            self.order(ours.want((("no-such-sku", 1),), who), wrong=True)
        elif point < 0.06:
            self.order(ours.want(((ours.plan.skus[0], 1),), who), body=b'{"buyer_id": ', wrong=True)
        else:
            told = self.order(ours.want(self.basket(), who))
            if told.code in ("rate_limited", "blocked"):
                gevent.sleep(min(told.retry_after_s, BACK_OFF_S))
        self.pause(0.02)


class Channel(Shopper):
    """A shop of its own that sends its buyers' orders in batches, and some of them again."""

    _last: tuple[tuple[Wanted, bytes], ...] = ()

    @task
    def send(self) -> None:
        """One batch."""
        self.until_t0()
        ours = here()
        repeated = self._last[: ours.plan.batch_lines // 10]
        wanted = [ours.want(self.basket()) for _ in range(ours.plan.batch_lines - len(repeated))]
        lines = (*repeated, *((w, encode({"request_key": w.key} | w.fields())) for w in wanted))
        self._send(ours, lines)
        self._last = lines[len(repeated) :]
        self.pause(here().plan.pause_s)

    def _send(self, ours: Run, lines: tuple[tuple[Wanted, bytes], ...]) -> None:
        # The body of an order is its line without the key: as a plain order it would be the same request.
        numbers = [ours.ask(w, encode(w.fields())) for w, _ in lines]
        answers: list[Told] = []

        def read(status: int, headers: Mapping[str, str], body: bytes) -> Told:
            told = read_told("batch", status, headers, body)
            if told.result != "ok":
                return told
            raw = body.splitlines()
            if len(raw) != len(lines):
                return told._replace(failure=f"{len(raw)} lines for {len(lines)} orders")
            answers.extend(line_told(line, w.key) for line, (w, _) in zip(raw, lines, strict=True))
            return told._replace(failure=next((a.failure for a in answers if a.failure), ""))

        body = b"\n".join(line for _, line in lines) + b"\n"
        path = orders_path(ours.plan.campaign) + ":batch"
        told = self.call("POST", path, "batch", read, body, {"Content-Type": NDJSON})
        for n, answer in zip(numbers, answers or [told._replace(order_id="")] * len(lines), strict=True):
            ours.told(n, answer)
            if answers:  # in the statistics too, under its outcome
                self.environment.events.request.fire(
                    request_type="LINE", name=answer.name, response_time=None, response_length=0, context={},
                    exception=ValueError(answer.failure) if answer.failure else None,
                )  # fmt: skip


def _lower(headers: Any) -> Mapping[str, str]:
    """Header names in lower case; an answer that never came has none."""
    return {} if headers is None else {str(k).lower(): str(v) for k, v in _pairs(headers)}


def _pairs(headers: Any) -> Iterator[tuple[str, str]]:
    yield from headers.items()
