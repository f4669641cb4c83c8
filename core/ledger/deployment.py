"""What is fixed for a deployment's life, kept in its ledger: the number of shards, and an id of its own."""

import asyncpg

from core.errors import ConfigInvalid, LedgerUnavailable, SchemaMismatch
from core.ledger.pool import Pool, ask
from core.ledger.queries import query

TRIES = 5


async def claim_deployment(ledger: Pool, shards: int) -> str:
    """The id of the ledger's deployment, which has `shards` shards; the first process that asks writes both down.

    Raises:
        ConfigInvalid: the deployment was made with another number: campaigns would not be found, or be made twice.
        SchemaMismatch: the ledger was not migrated.
        LedgerUnavailable.
    """
    for _ in range(TRIES):
        try:
            row = await ask(lambda: ledger.fetchrow(query("claim_deployment"), shards))
        except asyncpg.UndefinedTableError as exc:
            raise SchemaMismatch("the ledger's schema is missing or old: run `rushgate migrate`") from exc
        if row is None:
            continue
        if row["shards"] != shards:
            raise ConfigInvalid(f"RUSHGATE_SHARDS is {shards}; this deployment was made with {row['shards']}, for life")
        return str(row["id"])
    raise LedgerUnavailable("the deployment is being written down")
