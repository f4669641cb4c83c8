"""What partners are sent: which topic goes to whom, and the body of each message."""

from typing import Any

import asyncpg
import msgspec

from core.ids import text_of
from workers.outbox import Message

# Topic -> the partner that it goes to, as in the URL.
PARTNER_OF = {
    "payment": "payment",
    "refund": "payment",
    "warehouse": "warehouse",
    "recall": "warehouse",
    "provision": "provisioning",
    "unprovision": "provisioning",
    "bill": "billing",
    "unbill": "billing",
    "notify": "notification",
    "webhook": "channel",
}


class Unsayable(Exception):
    """The ledger does not have what the message must say."""


def message_id(message: Message, topic: str) -> str:
    """The same for every attempt. Without a full stop, which a signed id must not have."""
    return f"msg_{message.order_id.hex}_{message.version}_{topic}"


def body(message: Message, shard: int, topic: str, facts: asyncpg.Record) -> bytes:
    """The JSON of a message; `facts` as message_facts.sql gives them. Raises Unsayable."""
    return msgspec.json.encode({
        "message_id": message_id(message, topic),
        "topic": topic,
        "order_id": text_of(message.order_id.bytes),
        "shard": shard,
        "data": _data(message, topic, facts),
    })  # fmt: skip


def _data(message: Message, topic: str, facts: asyncpg.Record) -> dict[str, Any]:
    if topic == "payment":
        return {name: facts[name] for name in ("amount", "currency", "pay_by", "channel")}
    if topic == "refund":
        if facts["refund_no"] is None:
            raise Unsayable(f"no refund ref_{message.version} is on record")
        return {
            "refund_no": facts["refund_no"],
            "amount": facts["refund_amount"],
            "currency": facts["refund_currency"],
        }
    common = {name: facts[name] for name in ("buyer_id", "channel")} | {"version": message.version}
    if topic in ("notify", "webhook"):
        return common | {
            "state": facts["to_state"],
            "action": facts["action"],
            "reason": facts["reason"],
            "at": facts["at"],
        }
    ship_to = None if facts["ship_to"] is None else msgspec.Raw(facts["ship_to"].encode())
    return common | {"items": msgspec.Raw(facts["items"].encode()), "ship_to": ship_to}
