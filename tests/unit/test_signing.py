"""Standard Webhooks: the published vector, every way to be refused, rotation, and secrets that never show."""

import base64
import hashlib
import hmac
import math
import traceback
from collections.abc import Mapping

import pytest

from core.errors import ConfigInvalid
from core.signing import SECRETS_MAX, SignatureInvalid, Signer

# From the tests of the specification's own libraries ("sign function works").
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
AT_S = 1_614_265_330
BODY = b'{"test": 2432232314}'
PUBLISHED = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
FOREIGN = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc="


def signed(**changed: str) -> dict[str, str]:
    """The published message's headers, some of them changed: `id`, `timestamp`, `signature`."""
    headers = {"webhook-id": MESSAGE_ID, "webhook-timestamp": str(AT_S), "webhook-signature": PUBLISHED}
    return headers | {f"webhook-{name}": value for name, value in changed.items()}


def refusal(headers: Mapping[str, str], body: bytes = BODY, now_s: float = AT_S) -> str:
    with pytest.raises(SignatureInvalid) as caught:
        Signer([SECRET]).verify(headers, body, now_s)
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (401, "signature_invalid", False)
    return caught.value.detail


def test_published_vector_is_signed_and_verified() -> None:
    assert Signer([SECRET]).sign(MESSAGE_ID, AT_S, BODY) == signed()
    assert Signer([SECRET]).verify(signed(), BODY, AT_S) == MESSAGE_ID


def test_signature_is_hmac_sha256_of_id_timestamp_and_body() -> None:
    body = b"\xff\x00 raw bytes, never decoded"
    digest = hmac.new(bytes(range(32)), b"order-1.17." + body, hashlib.sha256).digest()
    headers = Signer([OTHER_SECRET, SECRET]).sign("order-1", 17, body)
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert Signer([OTHER_SECRET]).verify(headers, body, 17.0) == "order-1"


@pytest.mark.parametrize("off_s", [-300, -299.999, 0, 299.999, 300])
def test_timestamp_within_tolerance_is_accepted(off_s: float) -> None:
    assert Signer([SECRET]).verify(signed(), BODY, AT_S + off_s) == MESSAGE_ID


@pytest.mark.parametrize(
    ("off_s", "why"), [(300.001, "too old"), (86_400, "too old"), (-300.001, "in the future"), (math.nan, "future")]
)
def test_timestamp_outside_tolerance_is_refused(off_s: float, why: str) -> None:
    assert why in refusal(signed(), now_s=AT_S + off_s)


def test_rotation_signs_with_the_first_and_verifies_with_all() -> None:
    old, both, new = Signer([SECRET]), Signer([OTHER_SECRET, SECRET]), Signer([OTHER_SECRET])
    assert both.verify(old.sign("m", AT_S, BODY), BODY, AT_S) == "m"
    assert new.verify(both.sign("m", AT_S, BODY), BODY, AT_S) == "m"
    with pytest.raises(SignatureInvalid, match="no signature matches"):
        old.verify(both.sign("m", AT_S, BODY), BODY, AT_S)


def test_message_signed_with_old_and_new_secret_is_accepted_by_either() -> None:
    one, two = (Signer([s]).sign("m", AT_S, BODY) for s in (SECRET, OTHER_SECRET))
    both = one | {"webhook-signature": f"{one['webhook-signature']} {two['webhook-signature']}"}
    for secret in (SECRET, OTHER_SECRET):
        assert Signer([secret]).verify(both, BODY, AT_S) == "m"


@pytest.mark.parametrize(
    "signatures",
    [f"{FOREIGN} {PUBLISHED}", f"v1a,AAAA v2,x {PUBLISHED}", f"{PUBLISHED} {FOREIGN}", f"  {PUBLISHED}  junk"],
)
def test_one_matching_signature_of_several_is_enough(signatures: str) -> None:
    assert Signer([SECRET]).verify(signed(signature=signatures), BODY, AT_S) == MESSAGE_ID


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (signed(id=MESSAGE_ID[:-1]), BODY),
        (signed(timestamp=str(AT_S + 1)), BODY),
        (signed(timestamp=f"0{AT_S}"), BODY),
        (signed(), BODY + b" "),
        (signed(), BODY.replace(b" ", b"")),
        (signed(), b""),
    ],
)
def test_tampered_message_is_refused(headers: dict[str, str], body: bytes) -> None:
    assert "no signature matches" in refusal(headers, body)


@pytest.mark.parametrize("signature", [PUBLISHED[:-1], PUBLISHED[:12], "v1,", PUBLISHED + "=", FOREIGN])
def test_truncated_or_foreign_base64_is_refused(signature: str) -> None:
    assert "no signature matches" in refusal(signed(signature=signature))


@pytest.mark.parametrize("prefix", ["v2,", "v1a,", "V1,", "", "v1", "v1,v2,"])
def test_wrong_version_prefix_is_refused(prefix: str) -> None:
    assert refusal(signed(signature=prefix + PUBLISHED.removeprefix("v1,"))).startswith("webhook-signature: ")


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_missing_or_empty_header_is_named(name: str) -> None:
    assert refusal({k: v for k, v in signed().items() if k != name}) == f"{name}: this header is missing"
    assert refusal(signed() | {name: ""}) == f"{name}: this header is missing"


@pytest.mark.parametrize("timestamp", ["hello", "-1", "1.5", "1e9", " 17", "0x11", "+17", "1_7"])
def test_timestamp_that_is_no_number_is_refused(timestamp: str) -> None:
    assert "not a number" in refusal(signed(timestamp=timestamp))


@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
@pytest.mark.parametrize(
    ("value", "why"),
    [("é" * 5, "not ASCII"), ("١٢٣", "not ASCII"), ("\udcff", "not ASCII"), ("9" * 1_000_000, "longer than")],
)
def test_odd_header_is_refused_without_being_shown(name: str, value: str, why: str) -> None:
    detail = refusal(signed(**{name: value}))
    assert why in detail
    assert value not in detail


@pytest.mark.parametrize("message_id", ["a.b", "a b", "a\n", "\x7f"])
def test_id_that_could_be_read_two_ways_is_refused(message_id: str) -> None:
    assert refusal(signed(id=message_id)).startswith("webhook-id: ")
    with pytest.raises(ValueError, match="message id"):
        Signer([SECRET]).sign(message_id, AT_S, BODY)


@pytest.mark.parametrize("timestamp_s", [-1, 10**12])
def test_sign_refuses_a_timestamp_that_verify_would_refuse(timestamp_s: int) -> None:
    with pytest.raises(ValueError, match="timestamp"):
        Signer([SECRET]).sign("m", timestamp_s, BODY)


def test_headers_are_read_as_bytes_as_pairs_and_in_any_case() -> None:
    pairs = [(name.title().encode(), value.encode()) for name, value in signed().items()]
    others = [(b"host", b"x"), (b"content-type", b"\xff"), (b"\xff" * 12, b"y")]
    assert Signer([SECRET]).verify(dict(pairs + others), BODY, AT_S) == MESSAGE_ID
    assert Signer([SECRET]).verify(others + pairs, BODY, AT_S) == MESSAGE_ID


def test_repeated_header_is_refused() -> None:
    pairs = [(name.encode(), value.encode()) for name, value in signed().items()]
    with pytest.raises(SignatureInvalid, match="webhook-id: stands there more than once"):
        Signer([SECRET]).verify([*pairs, (b"Webhook-Id", b"other")], BODY, AT_S)


def test_every_candidate_is_compared_with_every_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def record(expected: bytes, candidate: bytes) -> bool:
        compared.append(candidate)
        return expected == candidate

    monkeypatch.setattr("core.signing.hmac.compare_digest", record)
    headers = signed(signature=f"{PUBLISHED} {FOREIGN}")  # the first one matches at once
    assert Signer([SECRET, OTHER_SECRET]).verify(headers, BODY, AT_S) == MESSAGE_ID
    assert compared == [PUBLISHED.encode(), FOREIGN.encode()] * 2


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "begins with whsec_"),
        ("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "begins with whsec_"),
        ("", "begins with whsec_"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "not base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_", "not base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaé", "not base64"),
        ("whsec_", "0 bytes"),
        ("whsec_" + base64.b64encode(b"k" * 23).decode(), "23 bytes"),
        ("whsec_" + base64.b64encode(b"k" * 65).decode(), "65 bytes"),
    ],
)
def test_bad_secret_names_its_place_and_never_itself(secret: str, why: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Signer([SECRET, secret], place="RUSHGATE_PAYMENT_SECRETS")
    shown = "".join(traceback.format_exception(caught.value))  # with its causes
    assert "RUSHGATE_PAYMENT_SECRETS, entry 2" in shown
    assert why in shown
    if len(secret) > len("whsec_"):
        assert secret.removeprefix("whsec_") not in shown


@pytest.mark.parametrize("size", [24, 64])
def test_secret_of_the_least_and_the_most_bytes_is_taken(size: int) -> None:
    signer = Signer(["whsec_" + base64.b64encode(b"k" * size).decode()])
    assert signer.verify(signer.sign("m", AT_S, BODY), BODY, AT_S) == "m"


@pytest.mark.parametrize("count", [0, SECRETS_MAX + 1])
def test_number_of_secrets_is_bounded(count: int) -> None:
    with pytest.raises(ConfigInvalid, match="secrets"):
        Signer([SECRET] * count)
