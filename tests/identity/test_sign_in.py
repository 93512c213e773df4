"""Registration, sign-in, refresh and sign-out: success, every refusal, races."""

import asyncio
import hashlib
from typing import Any

import pytest

from ekoyka.database import Database
from ekoyka.errors import Invalid
from ekoyka.identity import operations, sessions
from ekoyka.identity.actors import Actor
from ekoyka.identity.operations import EmailTaken
from ekoyka.identity.sessions import AccountBlocked, CredentialsWrong, SignedIn
from ekoyka.identity.tables import Account, Role
from tests.factories import Factory
from tests.identity.transactions import answer, run, until_one_waits

DAY_S = 86_400


async def register(database: Database, email: str = "anna@example.org", **details: Any) -> Any:
    return await answer(
        database, operations.register, email=email, password_hash="hash", details={"name": "Анна", **details}
    )


async def opened(database: Database, account: Account) -> SignedIn:
    """A new session of the account."""
    signed_in: SignedIn = await run(
        database, sessions.open_session, account_id=account.id, password_hash="-", ttl_s=DAY_S
    )
    return signed_in


# Registration


async def test_register_makes_an_account_without_roles(database: Database) -> None:
    account = await register(database, position="Медсестра")

    assert (account.email, account.name, account.position, account.language) == (
        "anna@example.org",
        "Анна",
        "Медсестра",
        "ru",
    )
    assert not await database.fetch("SELECT FROM role_grant")


async def test_register_keeps_an_address_in_one_form(database: Database) -> None:
    account = await register(database, " Анна@Example.ORG ")

    assert account.email == "анна@example.org"
    assert isinstance(await register(database, "АННА@example.org"), EmailTaken)


async def test_register_refuses_a_taken_address_by_its_field(database: Database) -> None:
    await register(database)

    refusal = await register(database)

    assert isinstance(refusal, EmailTaken)
    assert refusal.path == ("email",)


@pytest.mark.parametrize(
    "email", ["", "anna", "@", "a b@example.org", "a@b@c", "a\x00@example.org", "a" * 250 + "@b.ru"]
)
async def test_register_refuses_what_is_no_address(database: Database, email: str) -> None:
    refusal = await register(database, email)

    assert isinstance(refusal, Invalid)
    assert refusal.path == ("email",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "   "),
        ("name", "я" * 201),
        ("name", "a\x00b"),
        ("name", None),
        ("position", "я" * 201),
        ("language", "de"),
    ],
)
async def test_register_refuses_bad_details_by_their_field(
    database: Database, field: str, value: Any
) -> None:
    refusal = await register(database, **{field: value})

    assert isinstance(refusal, Invalid)
    assert refusal.path == (field,)


async def test_one_of_many_registrations_of_one_address_succeeds(database: Database) -> None:
    answers = await asyncio.gather(*(register(database) for _ in range(10)))

    assert sorted(type(item).__name__ for item in answers) == ["Account"] + ["EmailTaken"] * 9


# Sign-in


@pytest.mark.parametrize("email", ["anna@example.org", " ANNA@Example.org\t"])
async def test_credentials_are_found_by_the_address(database: Database, email: str) -> None:
    account = await register(database)

    found = await operations.find_credentials(database, email)

    assert found is not None
    assert (found.account_id, found.password_hash, found.known_there) == (account.id, "hash", False)


@pytest.mark.parametrize(
    "email", ["", "nobody@example.org", "a\x00@example.org", "\ud800@b", "%@example.org", "x" * 10_000]
)
async def test_no_credentials_are_found_by_another_address(database: Database, email: str) -> None:
    await register(database)

    assert await operations.find_credentials(database, email) is None


async def test_a_session_gives_the_actor_with_all_roles(database: Database, make: Factory) -> None:
    first, second = await make.dispensary(), await make.dispensary()
    account = await make.account(superadmin=True, doctor_of=(first, second), dispatcher_of=(second,))

    signed_in = await opened(database, account)

    assert signed_in.actor == Actor(
        account_id=account.id,
        auth_version=1,
        superadmin=True,
        doctor_of=frozenset({first.id, second.id}),
        dispatcher_of=frozenset({second.id}),
    )


async def test_only_the_refresh_tokens_digest_is_kept(database: Database, make: Factory) -> None:
    signed_in = await opened(database, await make.account())

    rows = await database.fetch("SELECT * FROM refresh_token")

    assert [row["hash"] for row in rows] == [hashlib.sha256(signed_in.refresh_token.encode()).digest()]
    assert signed_in.refresh_token not in str(rows)
    assert len(signed_in.refresh_token) == 43  # 32 bytes in base64url


async def test_a_blocked_account_opens_no_session(database: Database, make: Factory) -> None:
    account = await make.account()
    await run(
        database, operations.block_account, actor=await make.actor(superadmin=True), account_id=account.id
    )

    refusal = await answer(
        database, sessions.open_session, account_id=account.id, password_hash="-", ttl_s=DAY_S
    )

    assert isinstance(refusal, AccountBlocked)
    assert not await database.fetch("SELECT FROM session")


async def test_a_session_opened_while_the_account_is_being_blocked_is_not_left_open(
    database: Database, make: Factory
) -> None:
    account, admin = await make.account(), await make.actor(superadmin=True)

    async with database.transaction() as session:
        signed_in = await sessions.open_session(
            session, account_id=account.id, password_hash="-", ttl_s=DAY_S
        )
        blocking = asyncio.create_task(
            run(database, operations.block_account, actor=admin, account_id=account.id)
        )
        await until_one_waits(database)
    await blocking

    await run(database, operations.unblock_account, actor=admin, account_id=account.id)
    assert await run(database, sessions.refresh, signed_in.refresh_token) is None


async def test_a_session_is_not_opened_by_an_account_that_is_being_blocked(
    database: Database, make: Factory
) -> None:
    account, admin = await make.account(), await make.actor(superadmin=True)

    async with database.transaction() as session:
        await operations.block_account(session, actor=admin, account_id=account.id)
        opening = asyncio.create_task(
            answer(database, sessions.open_session, account_id=account.id, password_hash="-", ttl_s=DAY_S)
        )
        await until_one_waits(database)

    assert isinstance(await opening, AccountBlocked)


async def test_a_password_that_was_changed_since_it_was_compared_opens_no_session(
    database: Database, make: Factory
) -> None:
    account = await make.account()

    async with database.transaction() as session:
        actor = Actor(account_id=account.id, auth_version=1)
        await operations.change_password(session, actor=actor, password_hash="new")
        opening = asyncio.create_task(
            answer(database, sessions.open_session, account_id=account.id, password_hash="-", ttl_s=DAY_S)
        )
        await until_one_waits(database)

    assert isinstance(await opening, CredentialsWrong)


# Refresh


async def test_refresh_gives_the_next_token_and_so_on(database: Database, make: Factory) -> None:
    first = await opened(database, await make.account())

    second = await run(database, sessions.refresh, first.refresh_token)
    third = await run(database, sessions.refresh, second.refresh_token)

    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3
    assert third.actor == first.actor
    assert await database.fetch_value("SELECT count(*) FROM session WHERE ended_at IS NULL") == 1


async def test_refresh_tells_of_roles_granted_meanwhile(database: Database, make: Factory) -> None:
    account, place = await make.account(), await make.dispensary()
    first = await opened(database, account)
    await run(
        database,
        operations.grant_role,
        actor=await make.actor(superadmin=True),
        account_id=account.id,
        role=Role.DOCTOR,
        dispensary_id=place.id,
    )

    second = await run(database, sessions.refresh, first.refresh_token)

    assert second.actor.doctor_of == {place.id}
    assert second.actor.auth_version == 2


async def test_a_token_used_twice_ends_the_session(database: Database, make: Factory) -> None:
    account = await make.account()
    first, other = await opened(database, account), await opened(database, account)
    second = await run(database, sessions.refresh, first.refresh_token)

    assert await run(database, sessions.refresh, first.refresh_token) is None

    assert await run(database, sessions.refresh, second.refresh_token) is None
    assert await run(database, sessions.refresh, other.refresh_token) is not None


async def test_one_of_fifty_uses_of_a_token_succeeds(database: Database, make: Factory) -> None:
    first = await opened(database, await make.account())

    answers = await asyncio.gather(*(run(database, sessions.refresh, first.refresh_token) for _ in range(50)))

    winners = [item for item in answers if item is not None]
    assert len(winners) == 1
    assert await run(database, sessions.refresh, winners[0].refresh_token) is None


@pytest.mark.parametrize("token", ["", "x" * 43, "ж", "\x00", "\ud800", "x" * 100_000])
async def test_refresh_refuses_an_unknown_token(database: Database, make: Factory, token: str) -> None:
    await opened(database, await make.account())

    assert await run(database, sessions.refresh, token) is None
    assert await database.fetch_value("SELECT count(*) FROM session WHERE ended_at IS NULL") == 1


async def test_refresh_refuses_the_stored_digest_itself(database: Database, make: Factory) -> None:
    await opened(database, await make.account())
    digest = await database.fetch_value("SELECT encode(hash, 'escape') FROM refresh_token")

    assert await run(database, sessions.refresh, digest) is None


async def test_refresh_refuses_an_expired_session(database: Database, make: Factory) -> None:
    signed_in = await opened(database, await make.account())
    await database.fetch("UPDATE session SET expires_at = now() - interval '1 second'")

    assert await run(database, sessions.refresh, signed_in.refresh_token) is None


async def test_refresh_does_not_lengthen_the_session(database: Database, make: Factory) -> None:
    signed_in = await opened(database, await make.account())
    before = await database.fetch_value("SELECT expires_at FROM session")

    await run(database, sessions.refresh, signed_in.refresh_token)

    assert await database.fetch_value("SELECT expires_at FROM session") == before


async def test_refresh_refuses_a_blocked_account(database: Database, make: Factory) -> None:
    account = await make.account()
    signed_in = await opened(database, account)
    await run(
        database, operations.block_account, actor=await make.actor(superadmin=True), account_id=account.id
    )

    assert await run(database, sessions.refresh, signed_in.refresh_token) is None


async def test_a_refresh_that_waits_for_a_new_password_gets_nothing(
    database: Database, make: Factory
) -> None:
    account = await make.account()
    signed_in = await opened(database, account)

    async with database.transaction() as session:
        await operations.change_password(session, actor=signed_in.actor, password_hash="new")
        refreshing = asyncio.create_task(run(database, sessions.refresh, signed_in.refresh_token))
        await until_one_waits(database)

    assert await refreshing is None


async def test_a_new_password_that_waits_for_a_refresh_ends_what_that_gave(
    database: Database, make: Factory
) -> None:
    account = await make.account()
    signed_in = await opened(database, account)

    async with database.transaction() as session:
        refreshed = await sessions.refresh(session, signed_in.refresh_token)
        changing = asyncio.create_task(
            run(database, operations.change_password, actor=signed_in.actor, password_hash="new")
        )
        await until_one_waits(database)
    changed = await changing

    assert refreshed is not None
    assert refreshed.actor.auth_version < changed.auth_version
    assert await run(database, sessions.refresh, refreshed.refresh_token) is None


# Sign-out


async def test_sign_out_ends_this_session_only(database: Database, make: Factory) -> None:
    account = await make.account()
    here, there = await opened(database, account), await opened(database, account)

    await run(database, sessions.end_session, here.refresh_token)

    assert await run(database, sessions.refresh, here.refresh_token) is None
    assert await run(database, sessions.refresh, there.refresh_token) is not None


async def test_sign_out_with_a_used_token_ends_its_session(database: Database, make: Factory) -> None:
    first = await opened(database, await make.account())
    second = await run(database, sessions.refresh, first.refresh_token)

    await run(database, sessions.end_session, first.refresh_token)

    assert await run(database, sessions.refresh, second.refresh_token) is None


async def test_sign_out_twice_or_with_an_unknown_token_is_no_matter(
    database: Database, make: Factory
) -> None:
    signed_in = await opened(database, await make.account())
    await run(database, sessions.end_session, signed_in.refresh_token)
    ended = await database.fetch_value("SELECT ended_at FROM session")

    await run(database, sessions.end_session, signed_in.refresh_token)
    await run(database, sessions.end_session, "unknown")

    assert await database.fetch_value("SELECT ended_at FROM session") == ended
