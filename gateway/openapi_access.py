"""The admin calls for channels, keys and block lists, as the OpenAPI document has them."""

from core.desk.blocks import Block, BlockSpec
from core.desk.channels import Channel, ChannelChange, ChannelSpec, NewKey, Revocation, Rotation
from gateway.access_admin import BLOCKS, CHANNELS, Blocks, Channels, Unblocked
from gateway.openapi_parts import ADMIN, BODY, Json, operation, path, problems, query

BODIES = [
    Block, Blocks, BlockSpec, Channel, ChannelChange, Channels, ChannelSpec, NewKey, Revocation, Rotation, Unblocked,
]  # fmt: skip

CHANNEL = path("channel", "name of the channel: a-z, 0-9, _ and -, 1 to 32 characters")
SEEN_ONCE = "The key is in this answer and nowhere else: we keep its digest."
OPTIONAL = "The body may be left out."


def _call(
    summary: str, result: str, body: str | None = None, more: tuple[str, ...] = (),
    parameters: list[Json] | None = None, description: str = "",
) -> Json:  # fmt: skip
    refusals = problems("unauthorized", "operators_only", *(BODY if body else ()), *more, "ledger_unavailable")
    found = operation(summary, "200", result, ADMIN, refusals, parameters or [], body)
    if description:
        found["description"] = description
    if OPTIONAL in description:
        found["requestBody"]["required"] = False
    return found


def access_paths() -> Json:
    """The paths under /v1/admin/channels and /v1/admin/blocks."""
    one, known = CHANNELS + "/{channel}", ("unknown_channel",)
    which = [
        {**query("kind", "of what is blocked", enum=["buyer", "ip"]), "required": True},
        {**query("value", "the buyer, address or network", maxLength=64), "required": True},
    ]
    return {
        CHANNELS: {
            "get": _call("All channels", "Channels"),
            "post": _call("Add a channel", "NewKey", "ChannelSpec", ("conflict",), None, SEEN_ONCE),
        },
        one: {
            "get": _call("A channel", "Channel", None, known, [CHANNEL]),
            "patch": _call("Change what a channel may do", "Channel", "ChannelChange", known, [CHANNEL]),
        },
        one + "/rotate": {
            "post": _call(
                "Give a channel a new key", "NewKey", "Rotation", ("conflict", *known), [CHANNEL],
                f"The old keys open for `keep_s` yet. {SEEN_ONCE} {OPTIONAL}",
            ),
        },
        one + "/revoke": {
            "post": _call(
                "Revoke a key or a channel", "Channel", "Revocation", known, [CHANNEL],
                f"Without `key_id` the whole channel: its keys, those of the settings, and its tickets. {OPTIONAL}",
            ),
        },
        BLOCKS: {
            "get": _call("All blocks in force", "Blocks"),
            "post": _call("Block a buyer or an address", "Block", "BlockSpec", ("conflict",)),
            "delete": _call("Take a block away", "Unblocked", None, ("invalid",), which),
        },
    }  # fmt: skip
