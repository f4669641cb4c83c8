"""Admission tickets and waiting rooms, as the OpenAPI document has them."""

from core.desk.room import RoomView
from gateway.line import MAX_WAIT_S, JoinRequest
from gateway.line_calls import ChallengeRequest, ChallengeView, RoomChange, TicketRequest, TicketView
from gateway.line_view import LineView
from gateway.openapi_parts import ADMIN, ASKING, BODY, CAMPAIGN, CHANNEL, Json, operation, problems, query

BODIES = [
    JoinRequest, LineView, TicketRequest, TicketView, ChallengeRequest, ChallengeView, RoomChange, RoomView,
]  # fmt: skip

ANYBODY: list[Json] = [{}]
SALE = ("unknown_campaign", "not_open", "conflict")
CALLER = ("unauthorized", "signature_invalid", "channel_not_allowed", "campaign_not_allowed", "blocked", "ticket_wrong")


def _told(found: Json, description: str) -> Json:
    """The call, described."""
    found["description"] = description
    return found


def line_paths() -> Json:
    """The paths of tickets, lines and rooms."""
    base = "/v1/campaigns/{campaign}"
    join = operation(
        "Join the line of a waiting room", "200", "LineView", [*CHANNEL, *ANYBODY],
        problems(
            *CALLER, "proof_needed", "proof_wrong", *SALE, "closed", "rate_limited", *BODY, *ASKING,
            "captcha_unavailable",
        ),
        [CAMPAIGN], "JoinRequest",
    )  # fmt: skip
    asked = operation(
        "Ask how a place stands", "200", "LineView", [{"signedPlace": []}],
        problems("unauthorized", *SALE, "invalid", *ASKING),
        [CAMPAIGN, query("wait", "seconds to wait for a change", "number", minimum=0, maximum=MAX_WAIT_S, default=0)],
    )  # fmt: skip
    ticket = operation(
        "Issue an admission ticket to a buyer", "200", "TicketView", CHANNEL,
        problems(*CALLER, *SALE, *BODY, *ASKING), [CAMPAIGN], "TicketRequest",
    )  # fmt: skip
    challenge = operation(
        "Ask what a guest must bring", "200", "ChallengeView", ANYBODY, problems(*SALE, *BODY, *ASKING), [CAMPAIGN],
        "ChallengeRequest",
    )  # fmt: skip
    operators = problems("unauthorized", "operators_only", "unknown_campaign", "conflict", *BODY, *ASKING)
    return {
        base + "/tickets": {
            "post": _told(ticket, "For orders of this buyer in this campaign, with this channel's rights, for a while.")
        },
        base + "/line": {
            "post": _told(
                join,
                "A channel joins for its buyer; a guest (no key) with a `guest_key` and the proofs that "
                "`line/challenge` names. The same buyer again has the same place. `line` is the signed place: keep it.",
            ),
            "get": _told(asked, "With the signed place. An admitted place is answered with its admission ticket."),
        },
        base + "/line/challenge": {"post": _told(challenge, "For pages whose visitors have no account in a channel.")},
        "/v1/admin/campaigns/{campaign}/room": {
            "get": operation("Show a waiting room", "200", "RoomView", ADMIN, operators, [CAMPAIGN]),
            "put": operation(
                "Set the rate of a waiting room", "200", "RoomView", ADMIN, operators, [CAMPAIGN], "RoomChange"
            ),
        },
    }
