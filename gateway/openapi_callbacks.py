"""The calls of those who report to us, as the OpenAPI document has them: how they are signed, and what they send."""

import base64

import msgspec

from core.desk.orders import PARTNERS
from core.signing import ID, SIGNATURE, TIMESTAMP, TOLERANCE_S, Signer
from gateway.openapi_parts import ASKING, BODY, Json, operation, path, problems

SIGNED: list[Json] = [{"webhookSignature": []}]
WEBHOOK: list[Json] = [
    {"name": name, "in": "header", "required": True, "description": words, "schema": {"type": "string"}}
    for name, words in (
        (ID, "unlike any other message's; the same again for a repeated one"),
        (TIMESTAMP, f"seconds since 1970; at most {TOLERANCE_S} s old or ahead"),
    )
]

_ORDER = "0199f7c1-5a3e-7c20-8b1d-0a5e00079c41"
_PAID = {
    "payment_no": "pay-20261122-0001", "order_id": _ORDER, "amount": 259_800, "currency": "CNY", "status": "paid",
    "paid_at": "2026-11-22T10:00:03.250Z",
}  # fmt: skip
PAYMENTS: dict[str, tuple[str, Json]] = {
    "paid": ("The buyer has paid: `amount` and `currency` are the order's, in minor units", _PAID),
    "failed": ("A payment has failed; the order waits for another one", _PAID | {"status": "failed"}),
    "refunded": (
        "Money was paid back: `payment_no` is the `refund_no` that our message asked with, `amount` that of the refund",
        _PAID | {"payment_no": "ref_3", "amount": 1_000, "status": "refunded"},
    ),
}
REPORTS: dict[str, tuple[str, Json]] = {
    action: (words, {"order_id": _ORDER, "action": action, "at": "2026-11-22T10:05:00Z"})
    for action, words in (
        ("pick", "warehouse: the goods are being packed"),
        ("ship", "warehouse: the parcel has left"),
        ("goods_back", "warehouse: what the buyer sent back has come"),
        ("provision", "provisioning: the service is set up; `provision_failed`: it could not be"),
        ("bill", "billing: the contract is billed; `bill_failed`: it could not be"),
    )
}

# An example that can be computed again: no deployment has this secret, whose bytes say what it is.
EXAMPLE_SECRET = "whsec_" + base64.b64encode(b"an example, known to everybody").decode()
EXAMPLE_ID, EXAMPLE_TIMESTAMP_S = "msg-20261122-0001", 1_795_341_603
EXAMPLE_BODY = msgspec.json.encode(_PAID)


def how_to_sign() -> str:
    """How a message is signed, with an example: Markdown."""
    headers = Signer([EXAMPLE_SECRET]).sign(EXAMPLE_ID, EXAMPLE_TIMESTAMP_S, EXAMPLE_BODY)
    lines = "\n".join(f"    {name}: {value}" for name, value in headers.items())
    return (
        f"Signed as Standard Webhooks 1.0 has it. The signed content is `{ID}.{TIMESTAMP}.body`: the values of the two "
        "headers and the raw body, byte for byte as it is sent. The key is what stands in base64 behind `whsec_`. "
        f"The header `{SIGNATURE}` is `v1,` and the base64 of the content's HMAC-SHA256; several may stand there, "
        "with a blank between them, and one that fits is enough.\n\n"
        f"With the secret `{EXAMPLE_SECRET}` the body\n\n    {EXAMPLE_BODY.decode()}\n\nis sent with\n\n{lines}\n"
    )


def _callback(
    summary: str, body: str, examples: dict[str, tuple[str, Json]], codes: tuple[str, ...], parameters: list[Json]
) -> Json:
    refusals = problems("signature_invalid", *BODY, "unknown_order", "on_its_way", *codes, *ASKING)
    found = operation(summary, "200", "Moved", SIGNED, refusals, parameters, body)
    found["description"] = how_to_sign()
    found["requestBody"]["content"]["application/json"]["examples"] = {
        name: {"summary": words, "value": value} for name, (words, value) in examples.items()
    }
    return found


def callback_paths() -> Json:
    """The paths of those who call back."""
    return {
        "/v1/payments/callback": {
            "post": _callback(
                "Payment or refund as the payment centre reports it", "Payment", PAYMENTS, ("contradicts",), WEBHOOK
            )
        },
        "/v1/partners/{partner}/callback": {
            "post": _callback(
                "Deed of a partner as it reports it", "PartnerReport", REPORTS, ("not_allowed", "not_found"),
                [path("partner", "who reports", sorted(PARTNERS)), *WEBHOOK],
            )
        },
    }  # fmt: skip
