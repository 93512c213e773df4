"""One's own account, roles and blocking: success, every refusal, races."""

import asyncio
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import Database
from ekoyka.errors import Invalid, NotFound, VersionConflict
from ekoyka.identity import operations, sessions
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import NotAuthenticated
from ekoyka.identity.operations import EmailTaken, LastSuperadmin, OwnAccount, RoleHeld
from ekoyka.identity.queries import actor_of, confirm, guard
from ekoyka.identity.tables import Role
from tests.factories import Factory
from tests.identity.transactions import answer, run

NOBODY = 999_999


async def is_current(database: Database, actor: Actor) -> bool:
    """Whether the read path would still answer this actor."""
    current: bool = await database.fetch_value(
        f"SELECT {guard('$1::bigint', '$2::int')}", actor.account_id, actor.auth_version
    )
    return current


async def entries(database: Database) -> list[tuple[Any, ...]]:
    rows = await database.fetch(
        "SELECT account_id, action, object_type, object_id, dispensary_id, request_id FROM access_entry ORDER BY id"
    )
    return [tuple(row) for row in rows]


async def told(database: Database, account_id: int) -> list[str]:
    """The payloads of what was published about the account, as they stand."""
    rows = await database.fetch(
        "SELECT payload::text FROM feed_event WHERE topic = $1 ORDER BY cursor", f"account:{account_id}"
    )
    return [row["payload"] for row in rows]


# One's own account


async def test_update_account_changes_what_is_given(database: Database, make: Factory) -> None:
    account = await make.account(name="Иванова Анна", position="Врач")
    actor = Actor(account_id=account.id, auth_version=1)

    row = await run(
        database,
        operations.update_account,
        actor=actor,
        version=1,
        changes={"name": " Петрова Анна ", "language": "en"},
    )

    assert (row.name, row.position, row.language, row.version) == ("Петрова Анна", "Врач", "en", 2)
    assert await is_current(database, actor)


async def test_update_account_changes_nothing_else(database: Database, make: Factory) -> None:
    account = await make.account()
    before = await database.fetch_value(
        "SELECT to_jsonb(a) - 'version' FROM account a WHERE id = $1", account.id
    )

    await run(
        database,
        operations.update_account,
        actor=Actor(account_id=account.id, auth_version=1),
        version=1,
        changes={
            "email": "other@example.org",
            "auth_version": 9,
            "password_hash": "x",
            "id": 5,
            "blocked_at": None,
        },
    )

    after = await database.fetch_value(
        "SELECT to_jsonb(a) - 'version' FROM account a WHERE id = $1", account.id
    )
    assert after == before


async def test_update_account_can_take_the_position_away(database: Database, make: Factory) -> None:
    account = await make.account(position="Врач")

    row = await run(
        database,
        operations.update_account,
        actor=Actor(account_id=account.id, auth_version=1),
        version=1,
        changes={"position": None},
    )

    assert row.position is None


async def test_update_account_refuses_a_stale_version_and_names_the_current(
    database: Database, make: Factory
) -> None:
    account = await make.account(version=4)

    refusal = await answer(
        database,
        operations.update_account,
        actor=Actor(account_id=account.id, auth_version=1),
        version=3,
        changes={"name": "Другая"},
    )

    assert isinstance(refusal, VersionConflict)
    assert refusal.fields == {"object_type": "Account", "object_id": account.id, "current_version": 4}


@pytest.mark.parametrize(
    ("field", "value"), [("name", ""), ("name", None), ("name", "я" * 201), ("language", "fr")]
)
async def test_update_account_refuses_bad_details_by_their_field(
    database: Database, make: Factory, field: str, value: object
) -> None:
    account = await make.account()

    refusal = await answer(
        database,
        operations.update_account,
        actor=Actor(account_id=account.id, auth_version=1),
        version=1,
        changes={field: value},
    )

    assert isinstance(refusal, Invalid)
    assert refusal.path == (field,)


async def test_one_of_two_updates_of_one_version_succeeds(database: Database, make: Factory) -> None:
    account = await make.account()
    actor = Actor(account_id=account.id, auth_version=1)

    answers = await asyncio.gather(
        *(
            answer(database, operations.update_account, actor=actor, version=1, changes={"name": name})
            for name in ("Первая", "Вторая")
        )
    )

    assert sorted(type(item).__name__ for item in answers) == ["Account", "VersionConflict"]


async def test_a_new_password_ends_every_session_and_token(database: Database, make: Factory) -> None:
    account, stranger = await make.account(), await make.account()
    actor = Actor(account_id=account.id, auth_version=1)
    mine = await run(database, sessions.open_session, account_id=account.id, password_hash="-", ttl_s=60)
    theirs = await run(database, sessions.open_session, account_id=stranger.id, password_hash="-", ttl_s=60)

    await run(database, operations.change_password, actor=actor, password_hash="new")

    found = await operations.find_credentials(database, account.email)
    assert found is not None
    assert found.password_hash == "new"
    assert not await is_current(database, actor)
    assert await run(database, sessions.refresh, mine.refresh_token) is None
    assert await run(database, sessions.refresh, theirs.refresh_token) is not None
    assert await told(database, account.id) == ["{}"]
    assert await entries(database) == [(account.id, "password_change", "Account", account.id, None, None)]


async def test_a_stale_actor_neither_reads_nor_changes_the_password(
    database: Database, make: Factory
) -> None:
    account = await make.account()
    actor = Actor(account_id=account.id, auth_version=1)
    await run(database, operations.change_password, actor=actor, password_hash="new")

    with pytest.raises(NotAuthenticated):
        await run(database, operations.own_account, actor=actor)
    with pytest.raises(NotAuthenticated):
        await run(database, operations.change_password, actor=actor, password_hash="newer")

    found = await operations.find_credentials(database, account.email)
    assert found is not None
    assert found.password_hash == "new"


async def test_one_of_two_changes_of_a_password_succeeds(database: Database, make: Factory) -> None:
    account = await make.account()
    actor = Actor(account_id=account.id, auth_version=1)

    answers = await asyncio.gather(
        *(
            run(database, operations.change_password, actor=actor, password_hash=text)
            for text in ("one", "two")
        ),
        return_exceptions=True,
    )

    assert sorted(type(item).__name__ for item in answers) == ["Account", "NotAuthenticated"]


async def test_the_present_hash_is_the_actors_own(database: Database, make: Factory) -> None:
    account = await make.account(password_hash="present")
    await make.account(password_hash="another")

    found = await run(database, operations.own_account, actor=Actor(account_id=account.id, auth_version=1))

    assert (found.id, found.password_hash) == (account.id, "present")


# Roles


async def test_a_granted_role_is_held_and_ends_older_tokens(database: Database, make: Factory) -> None:
    admin, account, place = await make.actor(superadmin=True), await make.account(), await make.dispensary()
    before = Actor(account_id=account.id, auth_version=1)

    row = await run(
        database,
        operations.grant_role,
        actor=admin,
        account_id=account.id,
        role=Role.DOCTOR,
        dispensary_id=place.id,
    )

    after = await run(database, actor_of, account.id)
    assert after == Actor(account_id=account.id, auth_version=2, doctor_of=frozenset({place.id}))
    assert row.version == 2
    assert not await is_current(database, before)
    assert await is_current(database, after)
    assert await told(database, account.id) == ["{}"]
    assert await entries(database) == [
        (admin.account_id, "doctor_grant", "Account", account.id, place.id, None)
    ]
    assert (
        await database.fetch_value("SELECT granted_by_id FROM role_grant WHERE account_id = $1", account.id)
        == admin.account_id
    )


async def test_a_superadmin_may_be_granted_beside_other_roles(database: Database, make: Factory) -> None:
    admin, place = await make.actor(superadmin=True), await make.dispensary()
    account = await make.account(dispatcher_of=(place,))

    await run(
        database,
        operations.grant_role,
        actor=admin,
        account_id=account.id,
        role=Role.SUPERADMIN,
        dispensary_id=None,
    )

    held = await run(database, actor_of, account.id)
    assert held.roles == {Role.SUPERADMIN, Role.DISPATCHER, Role.USER}


@pytest.mark.parametrize("role", [Role.SUPERADMIN, Role.DOCTOR])
async def test_grant_role_refuses_a_role_that_is_held(database: Database, make: Factory, role: Role) -> None:
    admin, place = await make.actor(superadmin=True), await make.dispensary()
    account = await make.account(superadmin=True, doctor_of=(place,))

    refusal = await answer(
        database,
        operations.grant_role,
        actor=admin,
        account_id=account.id,
        role=role,
        dispensary_id=None if role is Role.SUPERADMIN else place.id,
    )

    assert isinstance(refusal, RoleHeld)
    assert (await run(database, actor_of, account.id)).auth_version == 1


@pytest.mark.parametrize("role", [Role.SUPERADMIN, Role.DISPATCHER])
async def test_one_of_many_grants_of_one_role_succeeds(database: Database, make: Factory, role: Role) -> None:
    admin, account, place = await make.actor(superadmin=True), await make.account(), await make.dispensary()

    answers = await asyncio.gather(
        *(
            answer(
                database,
                operations.grant_role,
                actor=admin,
                account_id=account.id,
                role=role,
                dispensary_id=None if role is Role.SUPERADMIN else place.id,
            )
            for _ in range(10)
        )
    )

    assert sorted(type(item).__name__ for item in answers) == ["Account"] + ["RoleHeld"] * 9


async def test_grant_role_refuses_an_unknown_account_or_dispensary(database: Database, make: Factory) -> None:
    admin, account, place = await make.actor(superadmin=True), await make.account(), await make.dispensary()

    for account_id, dispensary_id in ((NOBODY, place.id), (account.id, NOBODY)):
        refusal = await answer(
            database,
            operations.grant_role,
            actor=admin,
            account_id=account_id,
            role=Role.DOCTOR,
            dispensary_id=dispensary_id,
        )
        assert isinstance(refusal, NotFound)

    assert not await entries(database)
    assert not await told(database, account.id)


@pytest.mark.parametrize(
    ("role", "bound", "path"),
    [
        (Role.USER, False, ("role",)),
        (Role.USER, True, ("role",)),
        (Role.SUPERADMIN, True, ("dispensaryId",)),
        (Role.DOCTOR, False, ("dispensaryId",)),
        (Role.DISPATCHER, False, ("dispensaryId",)),
    ],
)
async def test_grant_role_refuses_a_role_in_the_wrong_place(
    database: Database, make: Factory, role: Role, bound: bool, path: tuple[str, ...]
) -> None:
    admin, account, place = await make.actor(superadmin=True), await make.account(), await make.dispensary()

    refusal = await answer(
        database,
        operations.grant_role,
        actor=admin,
        account_id=account.id,
        role=role,
        dispensary_id=place.id if bound else None,
    )

    assert isinstance(refusal, Invalid)
    assert refusal.path == path


async def test_a_revoked_role_is_gone_and_others_stay(database: Database, make: Factory) -> None:
    admin, here, there = await make.actor(superadmin=True), await make.dispensary(), await make.dispensary()
    account = await make.account(doctor_of=(here, there), dispatcher_of=(here,))

    await run(
        database,
        operations.revoke_role,
        actor=admin,
        account_id=account.id,
        role=Role.DOCTOR,
        dispensary_id=here.id,
    )

    assert await run(database, actor_of, account.id) == Actor(
        account_id=account.id,
        auth_version=2,
        doctor_of=frozenset({there.id}),
        dispatcher_of=frozenset({here.id}),
    )
    assert await told(database, account.id) == ["{}"]
    assert await entries(database) == [
        (admin.account_id, "doctor_revoke", "Account", account.id, here.id, None)
    ]


async def test_revoke_role_refuses_a_role_that_is_not_held(database: Database, make: Factory) -> None:
    admin, here, there = await make.actor(superadmin=True), await make.dispensary(), await make.dispensary()
    account = await make.account(doctor_of=(here,))

    for account_id, role, dispensary_id in (
        (account.id, Role.DOCTOR, there.id),
        (account.id, Role.DISPATCHER, here.id),
        (account.id, Role.SUPERADMIN, None),
        (account.id, Role.USER, None),
        (NOBODY, Role.DOCTOR, here.id),
    ):
        refusal = await answer(
            database,
            operations.revoke_role,
            actor=admin,
            account_id=account_id,
            role=role,
            dispensary_id=dispensary_id,
        )
        assert isinstance(refusal, NotFound)

    assert not await entries(database)


async def revoke_superadmin(database: Database, actor: Actor, account_id: int) -> Any:
    return await answer(
        database,
        operations.revoke_role,
        actor=actor,
        account_id=account_id,
        role=Role.SUPERADMIN,
        dispensary_id=None,
    )


async def test_the_last_superadmin_keeps_the_role(database: Database, make: Factory) -> None:
    admin = await make.actor(superadmin=True)

    refusal = await revoke_superadmin(database, admin, admin.account_id)

    assert isinstance(refusal, LastSuperadmin)
    assert (await run(database, actor_of, admin.account_id)).superadmin


async def test_a_blocked_superadmin_does_not_count(database: Database, make: Factory) -> None:
    admin, other = await make.actor(superadmin=True), await make.actor(superadmin=True)
    await run(database, operations.block_account, actor=admin, account_id=other.account_id)

    assert isinstance(await revoke_superadmin(database, admin, admin.account_id), LastSuperadmin)


async def test_a_superadmin_may_lay_down_the_role_while_another_holds_it(
    database: Database, make: Factory
) -> None:
    admin, other = await make.actor(superadmin=True), await make.actor(superadmin=True)

    await revoke_superadmin(database, admin, admin.account_id)

    assert not (await run(database, actor_of, admin.account_id)).superadmin
    assert (await run(database, actor_of, other.account_id)).superadmin


@pytest.mark.parametrize("count", [2, 6])
async def test_superadmins_who_revoke_each_other_at_once_leave_one(
    database: Database, make: Factory, count: int
) -> None:
    admins = [await make.actor(superadmin=True) for _ in range(count)]

    answers = await asyncio.gather(
        *(
            revoke_superadmin(database, actor, other.account_id)
            for actor, other in zip(admins, admins[1:] + admins[:1], strict=True)
        )
    )

    assert [type(item) for item in answers].count(LastSuperadmin) == 1
    assert await database.fetch_value("SELECT count(*) FROM role_grant WHERE role = 'SUPERADMIN'") == 1


async def test_superadmins_who_block_each_other_at_once_leave_one(database: Database, make: Factory) -> None:
    first, second = await make.actor(superadmin=True), await make.actor(superadmin=True)

    answers = await asyncio.gather(
        answer(database, operations.block_account, actor=first, account_id=second.account_id),
        answer(database, operations.block_account, actor=second, account_id=first.account_id),
    )

    assert sorted(type(item).__name__ for item in answers) == ["Account", "LastSuperadmin"]
    assert await database.fetch_value("SELECT count(*) FROM account WHERE blocked_at IS NULL") == 1


async def test_a_block_and_a_revocation_at_once_leave_one_superadmin(
    database: Database, make: Factory
) -> None:
    first, second = await make.actor(superadmin=True), await make.actor(superadmin=True)

    answers = await asyncio.gather(
        answer(database, operations.block_account, actor=first, account_id=second.account_id),
        revoke_superadmin(database, second, first.account_id),
    )

    assert sorted(type(item).__name__ for item in answers) == ["Account", "LastSuperadmin"]


# Blocking


async def test_a_blocked_account_is_nobody_at_once(database: Database, make: Factory) -> None:
    admin, place = await make.actor(superadmin=True), await make.dispensary()
    account = await make.account(doctor_of=(place,))
    before = await run(database, actor_of, account.id)
    signed_in = await run(database, sessions.open_session, account_id=account.id, password_hash="-", ttl_s=60)

    row = await run(database, operations.block_account, actor=admin, account_id=account.id)

    assert row.blocked_at is not None
    assert await run(database, actor_of, account.id) is None
    assert not await is_current(database, before)
    assert not await is_current(database, Actor(account_id=account.id, auth_version=row.auth_version))
    assert await run(database, sessions.refresh, signed_in.refresh_token) is None
    assert await told(database, account.id) == ["{}"]
    assert await entries(database) == [(admin.account_id, "account_block", "Account", account.id, None, None)]


async def test_blocking_twice_is_no_matter(database: Database, make: Factory) -> None:
    admin, account = await make.actor(superadmin=True), await make.account()
    once = await run(database, operations.block_account, actor=admin, account_id=account.id)

    twice = await run(database, operations.block_account, actor=admin, account_id=account.id)

    assert (twice.blocked_at, twice.version) == (once.blocked_at, once.version)
    assert len(await entries(database)) == 1


async def test_nobody_blocks_themselves(database: Database, make: Factory) -> None:
    admin = await make.actor(superadmin=True)
    await make.actor(superadmin=True)

    refusal = await answer(database, operations.block_account, actor=admin, account_id=admin.account_id)

    assert isinstance(refusal, OwnAccount)
    assert await is_current(database, admin)


async def test_the_last_superadmin_is_not_blocked(database: Database, make: Factory) -> None:
    admin, last = await make.actor(superadmin=True), await make.actor(superadmin=True)
    await revoke_superadmin(database, last, admin.account_id)

    refusal = await answer(database, operations.block_account, actor=admin, account_id=last.account_id)

    assert isinstance(refusal, LastSuperadmin)
    assert await is_current(database, last)


async def test_an_unblocked_account_signs_in_anew(database: Database, make: Factory) -> None:
    admin, place = await make.actor(superadmin=True), await make.dispensary()
    account = await make.account(doctor_of=(place,))
    before = await run(database, actor_of, account.id)
    earlier = await run(database, sessions.open_session, account_id=account.id, password_hash="-", ttl_s=60)
    await run(database, operations.block_account, actor=admin, account_id=account.id)

    await run(database, operations.unblock_account, actor=admin, account_id=account.id)

    assert not await is_current(database, before)
    assert await run(database, sessions.refresh, earlier.refresh_token) is None
    later = await run(database, sessions.open_session, account_id=account.id, password_hash="-", ttl_s=60)
    assert later.actor.doctor_of == {place.id}
    assert await is_current(database, later.actor)
    assert len(await told(database, account.id)) == 2
    assert [entry[1] for entry in await entries(database)] == ["account_block", "account_unblock"]


async def test_unblocking_what_is_not_blocked_is_no_matter(database: Database, make: Factory) -> None:
    admin, account = await make.actor(superadmin=True), await make.account()

    row = await run(database, operations.unblock_account, actor=admin, account_id=account.id)

    assert row.version == 1
    assert not await entries(database)


@pytest.mark.parametrize("verb", [operations.block_account, operations.unblock_account])
async def test_blocking_refuses_an_unknown_account(database: Database, make: Factory, verb: Any) -> None:
    admin = await make.actor(superadmin=True)

    assert isinstance(await answer(database, verb, actor=admin, account_id=NOBODY), NotFound)


async def test_nothing_is_told_of_a_change_that_is_undone(database: Database, make: Factory) -> None:
    admin, account = await make.actor(superadmin=True), await make.account()

    async def block_and_fail(session: AsyncSession) -> None:
        await operations.block_account(session, actor=admin, account_id=account.id)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await run(database, block_and_fail)

    assert not await told(database, account.id)
    assert not await entries(database)
    assert await is_current(database, Actor(account_id=account.id, auth_version=1))


# The command line's superadministrator, and who is current


async def test_create_admin_makes_a_superadmin_with_nobody_signed_in(database: Database) -> None:
    account = await run(
        database,
        operations.create_admin,
        email="Root@example.org",
        password_hash="hash",
        name="Администратор",
    )

    assert account.email == "root@example.org"
    assert (await run(database, actor_of, account.id)).superadmin


async def test_create_admin_refuses_a_taken_address_and_grants_nothing(
    database: Database, make: Factory
) -> None:
    account = await make.account(email="root@example.org")

    refusal = await answer(
        database,
        operations.create_admin,
        email="root@example.org",
        password_hash="hash",
        name="Администратор",
    )

    assert isinstance(refusal, EmailTaken)
    assert not (await run(database, actor_of, account.id)).superadmin


@pytest.mark.parametrize("version", [0, 2])
async def test_confirm_refuses_another_version(database: Database, make: Factory, version: int) -> None:
    account = await make.account()

    await run(database, confirm, Actor(account_id=account.id, auth_version=1))
    with pytest.raises(NotAuthenticated):
        await run(database, confirm, Actor(account_id=account.id, auth_version=version))


async def test_confirm_refuses_an_account_that_is_not_there(database: Database) -> None:
    with pytest.raises(NotAuthenticated):
        await run(database, confirm, Actor(account_id=NOBODY, auth_version=1))

    assert await run(database, actor_of, NOBODY) is None


async def test_confirm_is_one_statement(database: Database, make: Factory) -> None:
    actor = await make.actor()
    before = database.statements

    await run(database, confirm, actor)

    assert database.statements - before == 1
