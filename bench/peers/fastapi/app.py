# mypy: ignore-errors
# Its packages are in a virtual environment of its own: bench/peers/install.py.
"""Orders with FastAPI, pydantic and redis-py: what most would write."""

import os
import secrets
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import BlockingConnectionPool, Redis

CHANNEL_KEY = os.environ["CHANNEL_KEY"]
BUYER_LIMIT = 2
PAY_WITHIN = timedelta(seconds=900)
ACCEPTED, REPEATED, SOLD_OUT, OVER_LIMIT = range(4)
SCRIPT = (Path(__file__).parent.parent / "order.lua").read_text("utf-8")


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sku: str = Field(min_length=1, max_length=64)
    quantity: int = Field(ge=1, le=1000)


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    buyer_id: str = Field(min_length=1, max_length=64)
    items: list[Item] = Field(min_length=1, max_length=20)
    client_ip: str | None = Field(default=None, max_length=45)
    device_id: str | None = Field(default=None, max_length=128)


class Accepted(BaseModel):
    order_id: str
    status: str
    status_url: str
    pay_by: str
    durability: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Bounded, and who comes when all are in use waits: the plain pool opens a connection for each request in flight.
    pool = BlockingConnectionPool.from_url(os.environ["STORE_URL"], max_connections=64, timeout=10)
    client = Redis(connection_pool=pool, decode_responses=True)
    app.state.order = client.register_script(SCRIPT)
    yield
    await client.aclose()
    await pool.aclose()


app = FastAPI(lifespan=lifespan)


async def authorized(authorization: Annotated[str, Header()] = "") -> None:
    if not secrets.compare_digest(authorization.encode(), f"Bearer {CHANNEL_KEY}".encode()):
        raise HTTPException(401, "unauthorized")


@app.post("/v1/campaigns/{campaign}/orders", status_code=202, dependencies=[Depends(authorized)])
async def take(
    campaign: str,
    order: Order,
    idempotency_key: Annotated[str, Header(min_length=1, max_length=64)],
    request: Request,
) -> Accepted:
    order_id = str(uuid.uuid4())
    pay_by = (datetime.now(UTC) + PAY_WITHIN).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    lines = [part for item in order.items for part in (item.sku, item.quantity)]
    code, text = await request.app.state.order(
        keys=[f"{{{campaign}}}:{name}" for name in ("stock", "buyers", "requests", "orders")],
        args=[
            idempotency_key, f"{order_id} {pay_by}", order_id, order.model_dump_json(exclude_none=True), order.buyer_id,
            BUYER_LIMIT, *lines,
        ],
    )  # fmt: skip
    if code == SOLD_OUT:
        raise HTTPException(409, "sold_out")
    if code == OVER_LIMIT:
        raise HTTPException(409, "over_limit")
    order_id, _, pay_by = text.decode().partition(" ")
    return Accepted(
        order_id=order_id, status="accepted", status_url=f"/v1/orders/{order_id}", pay_by=pay_by, durability="fsync"
    )
