"""Idempotency keys: the same key with the same input is done once and answered twice.

Refuses a key that was used with another input.
"""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.errors import IdempotencyKeyReused
from ekoyka.identity.actors import Actor


async def claim(
    session: AsyncSession, *, actor: Actor, mutation: str, key: str, input_hash: bytes
) -> int | None:
    """The key is this transaction's, or the row's key that an earlier one made with it is returned.

    Waits for a transaction that is using the key right now. Raises `IdempotencyKeyReused`.
    """
    claimed = await session.execute(
        text(
            "INSERT INTO idempotency_key (account_id, mutation, key, input_hash) "
            "VALUES (:account, :mutation, :key, :hash) ON CONFLICT DO NOTHING RETURNING true"
        ),
        {"account": actor.account_id, "mutation": mutation, "key": key, "hash": input_hash},
    )
    if claimed.scalar():
        return None
    earlier = await session.execute(
        text(
            "SELECT input_hash, result_id FROM idempotency_key "
            "WHERE account_id = :account AND mutation = :mutation AND key = :key"
        ),
        {"account": actor.account_id, "mutation": mutation, "key": key},
    )
    known_hash, result_id = earlier.one()
    if known_hash != input_hash:
        raise IdempotencyKeyReused(("idempotencyKey",))
    return int(result_id)


async def keep(session: AsyncSession, *, actor: Actor, mutation: str, key: str, result_id: int) -> None:
    """The row made under the key is found again by `claim`."""
    await session.execute(
        text(
            "UPDATE idempotency_key SET result_id = :result "
            "WHERE account_id = :account AND mutation = :mutation AND key = :key"
        ),
        {"account": actor.account_id, "mutation": mutation, "key": key, "result": result_id},
    )
