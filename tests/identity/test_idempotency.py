"""Idempotency keys: done once, answered as often as asked."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import Database
from ekoyka.errors import IdempotencyKeyReused
from ekoyka.identity import idempotency
from ekoyka.identity.actors import Actor
from tests.factories import Factory
from tests.identity.transactions import answer, run


async def once(
    session: AsyncSession,
    *,
    actor: Actor,
    result_id: int,
    mutation: str = "stayCheckIn",
    input_hash: bytes = b"a",
) -> int:
    """A mutation under the key: its result is the first one's."""
    key = "ключ"
    known = await idempotency.claim(session, actor=actor, mutation=mutation, key=key, input_hash=input_hash)
    if known is not None:
        return known
    await idempotency.keep(session, actor=actor, mutation=mutation, key=key, result_id=result_id)
    return result_id


async def test_a_key_gives_the_first_result_again(database: Database, make: Factory) -> None:
    actor = await make.actor()

    assert await run(database, once, actor=actor, result_id=1) == 1
    assert await run(database, once, actor=actor, result_id=2) == 1


async def test_a_key_is_one_accounts_in_one_mutation(database: Database, make: Factory) -> None:
    actor, other = await make.actor(), await make.actor()
    await run(database, once, actor=actor, result_id=1)

    assert await run(database, once, actor=other, result_id=2) == 2
    assert await run(database, once, actor=actor, mutation="stayTransfer", result_id=3) == 3


async def test_a_key_with_another_input_is_refused(database: Database, make: Factory) -> None:
    actor = await make.actor()
    await run(database, once, actor=actor, result_id=1)

    refusal = await answer(database, once, actor=actor, result_id=2, input_hash=b"b")

    assert isinstance(refusal, IdempotencyKeyReused)
    assert refusal.path == ("idempotencyKey",)


async def test_many_sends_at_once_are_done_once(database: Database, make: Factory) -> None:
    actor = await make.actor()

    results = await asyncio.gather(
        *(run(database, once, actor=actor, result_id=number) for number in range(1, 41))
    )

    assert len(set(results)) == 1


async def test_a_key_is_free_again_when_its_transaction_failed(database: Database, make: Factory) -> None:
    actor = await make.actor()

    async def fail(session: AsyncSession) -> None:
        await once(session, actor=actor, result_id=1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await run(database, fail)

    assert await run(database, once, actor=actor, result_id=2) == 2
