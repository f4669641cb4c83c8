"""The served OpenAPI document, taken at its word: calls drawn from it, answers judged by it, by schemathesis.

A stack of its own, as operators' calls of every kind are drawn, too. What has no end (events) or waits is left out.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, cast

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from core.signing import Signer
from gateway.openapi import document
from tests.e2e.support import ADMIN, APP_KEY, PARTNER_SECRET, Client, Up, bearer, until
from tests.support import fresh

SEED = 20261122
EXAMPLES = {GenerationMode.POSITIVE: 8, GenerationMode.NEGATIVE: 6}  # of each operation
LONGEST_S = 5.0  # for one answer
ENDLESS = ("/v1/orders/{order_id}/events",)
ENDING = ("/close", "/pause", "/cancel", "/revoke", "/actions/{action}")  # calls that end what others are about
# Bodies that are wrong and taken: lines of a batch are answered one by one, and these need none.
TAKEN = ("/orders:batch", "/rotate", "/revoke")
METHODS = ("DELETE", "PATCH", "PUT", "POST", "GET", "TRACE", "QUERY", "OPTIONS")
JUDGES = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@schemathesis.serializer("application/x-ndjson")
def lines(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    """Lines of JSON; what is no list is one line."""
    return b"\n".join(json.dumps(one).encode() for one in (value if isinstance(value, list) else [value]))


class World:
    """A running stack, with one of each thing that a path may name."""

    def __init__(self, up: Up) -> None:
        self.client: Client = up.client
        self.url = up.client.url
        self.signers = {"payments": Signer([up.ready["payment_secret"]]), "partners": Signer([PARTNER_SECRET])}
        self.document: dict[str, Any] = self.client.call("GET", "/openapi.json").json
        self.schema = schemathesis.openapi.from_dict(self.document)
        self.schema.config.update(base_url=self.url)
        self.session = requests.Session()
        self.answers: Counter[tuple[str, str, int]] = Counter()
        self.renew()

    def renew(self) -> None:
        """The calls that are drawn may have ended what there was."""
        campaign = self.client.sale({"red": 1_000}, limits={"buyer": 500})
        room = self.client.sale({"red": 10}, admission="room", room={"channel": "app", "pow_bits": 1})
        order_id = self.client.order(campaign, "a").json["order_id"]
        until(lambda: self.client.get(f"/v1/orders/{order_id}/trace").status == 200)
        refund = self.client.call("POST", f"/v1/orders/{order_id}/refunds", b"{}", bearer(APP_KEY))
        channel = fresh("schema")
        made = self.client.call("POST", "/v1/admin/channels", b'{"channel":"%s"}' % channel.encode(), bearer(ADMIN))
        assert made.status in (200, 201), made
        self.real: dict[str, tuple[str, ...]] = {
            "campaign": (campaign, room), "order_id": (order_id,), "channel": (channel,),
            "refund_no": ("req_1", "ref_2", str(refund.json.get("refund_no", "req_2"))),
            "partner": ("warehouse", "billing"), "action": ("pick", "ship", "lost"), "code": ("sold_out",),
            "sku": ("red",), "buyer_id": ("a", "b", "c"), "currency": ("CNY",),
        }  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    up = Up(tmp_path_factory.mktemp("schema") / "d", "--port", "0", env={"RUSHGATE_LEDGER_TIMEOUT_S": "2"})
    try:
        yield World(up.wait_ready())
    finally:
        up.end()


def with_real(value: Any, real: dict[str, str]) -> Any:
    """A drawn body in which fields that name something name what there is."""
    if isinstance(value, dict):
        return {k: real[k] if k in real and isinstance(v, str) else with_real(v, real) for k, v in value.items()}
    return [with_real(one, real) for one in value] if isinstance(value, list) else value


def called(world: World, case: Case[Any], real: dict[str, str], who: str) -> requests.Response:
    """The answer to a drawn call: with real names where `real` has them, by `who`, signed if it must be."""
    case.path_parameters = {**case.path_parameters, **{k: v for k, v in real.items() if k in case.path_parameters}}
    case.body = with_real(case.body, real)
    if isinstance(case.query, dict):
        case.query.pop("wait", None)
    case.headers["Authorization"] = f"Bearer {who}"
    made = case.as_transport_kwargs(base_url=world.url)
    kept = ("method", "url", "headers", "params", "cookies", "data", "json", "files")
    request = requests.Request(**{name: made[name] for name in kept if name in made}).prepare()
    signer = next((s for place, s in world.signers.items() if f"/v1/{place}/" in case.operation.path), None)
    if signer is not None:
        body = cast("bytes", request.body.encode() if isinstance(request.body, str) else request.body or b"")
        request.headers.update(signer.sign(fresh("m"), int(time.time()), body))
    return world.session.send(request, timeout=LONGEST_S, allow_redirects=False)


def judge(case: Case[Any], answer: requests.Response) -> None:
    """As documented, and no error of ours: 503 only where the document has it, with the time to come again."""
    assert answer.status_code < 500 or answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE, (case, answer.text)
    if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        assert answer.headers["retry-after"].isdigit()
    spoilt = [] if case.operation.path.endswith(TAKEN) else [checks.negative_data_rejection]
    case.validate_response(answer, checks=[*JUDGES, *spoilt])


def operations() -> list[tuple[str, str]]:
    """Path and method of all that is served, for the names of the tests."""
    return [(path, method) for path, item in document()["paths"].items() for method in item if path not in ENDLESS]


def bounded(examples: int) -> settings:
    """So many examples, the same ones each time."""
    return settings(
        max_examples=examples, database=None, deadline=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.mark.parametrize("mode", EXAMPLES, ids=lambda mode: str(mode.value))
@pytest.mark.parametrize(("path", "method"), operations(), ids=str)
def test_drawn_calls_are_answered_as_documented(world: World, path: str, method: str, mode: GenerationMode) -> None:
    operation = world.schema[path][method.upper()]
    described = operation.definition.raw
    if mode is GenerationMode.NEGATIVE and not described.get("parameters") and "requestBody" not in described:
        return  # nothing can be wrong with it
    operators = "operators_only" in described["responses"].get("403", {}).get("description", "")
    who = st.sampled_from([ADMIN] * 5 + [APP_KEY] if operators else [APP_KEY] * 5 + [ADMIN, "nobody"])
    real = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in world.real.items()})

    @seed(SEED)
    @bounded(EXAMPLES[mode])
    @given(case=operation.as_strategy(generation_mode=mode), real=st.one_of(real, real, st.just({})), who=who)
    def drawn(case: Case[Any], real: dict[str, str], who: str) -> None:
        answer = called(world, case, real, who)
        world.answers[path, method, answer.status_code] += 1
        judge(case, answer)

    drawn()
    if path.endswith(ENDING):
        world.renew()


def test_drawn_calls_got_as_far_as_the_things_they_are_about(world: World) -> None:
    """Behind the tests above, in one process with them: what is drawn is not all refused at the door."""
    seen = {(path, method) for path, method, status in world.answers if status < 300}
    never = {(path, method) for path, method, _ in world.answers} - seen
    assert ("/v1/campaigns/{campaign}/orders", "post") in seen
    assert len(never) < len(seen), never


@pytest.mark.parametrize("path", list(document()["paths"]))
def test_other_methods_are_refused_and_told_which_there_are(world: World, path: str) -> None:
    served = {method.upper() for method in document()["paths"][path]}
    filled = path.format(**{name: values[0] for name, values in world.real.items()})
    for method in METHODS:
        if method in served:
            continue
        answer = world.session.request(method, world.url + filled, headers=bearer(ADMIN), timeout=LONGEST_S)
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed"), method
        assert {one.strip() for one in answer.headers["allow"].split(",")} - {"HEAD"} == served


@pytest.mark.parametrize("spoil", ["status", "schema", "negative"])
def test_control_what_is_not_as_documented_is_found(world: World, spoil: str) -> None:
    document = json.loads(json.dumps(world.document))
    described = document["paths"]["/livez"]["get"]["responses"]
    if spoil == "status":
        described["418"] = described.pop("200")
    elif spoil == "schema":
        described["200"]["content"]["application/json"]["schema"] = {"type": "array"}
    else:
        limit = {"name": "limit", "in": "query", "required": True, "schema": {"type": "integer", "minimum": 5}}
        document["paths"]["/livez"]["get"]["parameters"] = [limit]
    schema = schemathesis.openapi.from_dict(document)
    mode = GenerationMode.NEGATIVE if spoil == "negative" else GenerationMode.POSITIVE

    @seed(SEED)
    @bounded(5)
    @given(case=schema["/livez"]["GET"].as_strategy(generation_mode=mode))
    def drawn(case: Case[Any]) -> None:
        judge(case, called(world, case, {}, ADMIN))

    with pytest.raises(FailureGroup):
        drawn()
