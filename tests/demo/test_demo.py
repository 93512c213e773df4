"""The demonstration network: the same from the same seed, whole or not at all, true and believable."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from ekoyka import demo
from ekoyka.database import WARD_ROLE, Database
from ekoyka.identity import operations, sessions
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import PasswordHasher
from ekoyka.settings import Settings
from tests.client import Client, gid
from tests.conftest import address_of, administer, dropped
from tests.invariants import broken_invariants

NOW = datetime(2026, 3, 9, tzinfo=UTC)
# What is made by the clock or has to be unguessable: hashes, verification codes, the hours of reservations.
ROWS = {
    "dispensary": "to_jsonb(t)",
    "room": "to_jsonb(t)",
    "bed": "to_jsonb(t)",
    "bed_closure": "to_jsonb(t)",
    "account": "to_jsonb(t) - 'password_hash'",
    "role_grant": "to_jsonb(t)",
    "patient": "to_jsonb(t)",
    "stay": "to_jsonb(t)",
    "bed_assignment": "to_jsonb(t)",
    "reservation": "jsonb_build_array(bed_id, patient_id, reserved_by_id)",
    "certificate": "jsonb_build_array(stay_id, number, language, facts -> 'patient_name')",
}


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    hasher = PasswordHasher(4)
    yield hasher
    hasher.close()


@asynccontextmanager
async def another(template: str, settings: Settings) -> AsyncIterator[Database]:
    """A second database beside the test's own."""
    name = f"test_{uuid4().hex[:12]}"
    await administer(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        async with Database(address_of(name), settings, role=WARD_ROLE) as database:
            yield database
    finally:
        await dropped(name)


def silent(_: str) -> None:
    """Say nothing."""


async def digests(database: Database) -> dict[str, str]:
    """What each table holds, in short."""
    return {
        table: await database.fetch_value(
            f"SELECT md5(string_agg(({row})::text, ',' ORDER BY id)) FROM {table} t"
        )
        for table, row in ROWS.items()
    }


async def signed_in(database: Database, hasher: PasswordHasher, account: demo.DemoAccount) -> Actor:
    """The account's actor, once its password has been found good and a session is open."""
    found = await operations.find_credentials(database, account.email)
    assert found is not None
    assert await hasher.verify(account.password, found.password_hash)
    async with database.transaction() as session:
        opened = await sessions.open_session(
            session, account_id=found.account_id, password_hash=found.password_hash, ttl_s=60
        )
    return opened.actor


async def test_the_same_seed_and_day_make_the_same_network_and_another_seed_another(
    database: Database, settings: Settings, template: str, hasher: PasswordHasher
) -> None:
    async with another(template, settings) as twin, another(template, settings) as stranger:
        await demo.fill(database, hasher=hasher, say=silent, now=NOW)
        await demo.fill(twin, hasher=hasher, say=silent, now=NOW)
        await demo.fill(stranger, hasher=hasher, say=silent, now=NOW, seed=2)

        first, second, third = [await digests(each) for each in (database, twin, stranger)]

    assert None not in first.values()
    assert first == second
    assert all(first[table] != third[table] for table in ("patient", "stay", "bed_assignment"))


async def test_a_filled_network_is_left_as_it_is(database: Database, hasher: PasswordHasher) -> None:
    said: list[str] = []
    await demo.fill(database, hasher=hasher, say=silent, now=NOW)
    before = await digests(database)

    accounts = await demo.fill(database, hasher=hasher, say=said.append, seed=2)

    assert accounts == demo.ACCOUNTS
    assert said == ["демонстрационные данные на месте · the demonstration data are there"]
    assert await digests(database) == before


async def test_two_fillings_at_once_make_one_network(database: Database, hasher: PasswordHasher) -> None:
    await asyncio.gather(*(demo.fill(database, hasher=hasher, say=silent, now=NOW) for _ in range(2)))

    assert await database.fetch_value("SELECT count(*) FROM dispensary") == 5
    assert await database.fetch_value("SELECT count(*) FROM patient") == 600


async def test_a_filling_that_breaks_off_leaves_nothing_and_the_next_one_makes_it_whole(
    database: Database, hasher: PasswordHasher
) -> None:
    said: list[str] = []

    def break_off(line: str) -> None:
        said.append(line)
        if len(said) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await demo.fill(database, hasher=hasher, say=break_off, now=NOW)
    left = {table: await database.fetch_value(f"SELECT count(*) FROM {table}") for table in ROWS}
    await demo.fill(database, hasher=hasher, say=silent, now=NOW)

    assert set(left.values()) == {0}
    assert await database.fetch_value("SELECT count(*) FROM patient") == 600


@pytest.mark.parametrize("seed", [1, 7])
async def test_the_network_is_true_and_believable(
    database: Database, hasher: PasswordHasher, seed: int
) -> None:
    await demo.fill(database, hasher=hasher, say=silent, now=NOW, seed=seed)

    async def count(sql: str, *values: Any) -> int:
        number: int = await database.fetch_value(f"SELECT count(*) FROM {sql}", *values)
        return number

    assert await broken_invariants(database) == []
    lying = "bed_assignment a JOIN stay s ON s.id = a.stay_id JOIN patient p ON p.id = s.patient_id "
    lying += "JOIN bed b ON b.id = a.bed_id JOIN room r ON r.id = b.room_id"
    impossible = {
        "a patient in a room for others": f"{lying} WHERE r.sex NOT IN ('ANY', p.sex)",
        "a mismatch of isolation": f"{lying} WHERE r.isolation <> p.needs_isolation",
        "somebody in a bed out of service": (
            f"{lying} WHERE a.ended_at IS NULL AND b.service_state <> 'IN_SERVICE'"
        ),
        "somebody in a closed bed": (
            f"{lying} JOIN bed_closure c ON c.bed_id = b.id WHERE a.ended_at IS NULL OR a.ended_at > c.closed_at"
        ),
        "a closed bed that nobody closed": (
            "bed b WHERE (b.service_state = 'CLOSED') <> EXISTS "
            "(SELECT FROM bed_closure c WHERE c.bed_id = b.id AND c.reopened_at IS NULL)"
        ),
        "a bed reserved and occupied": (
            "reservation v JOIN bed_assignment a ON a.bed_id = v.bed_id AND a.ended_at IS NULL"
        ),
        "a bed reserved for somebody who is there": (
            "reservation v JOIN stay s ON s.patient_id = v.patient_id AND s.checked_out_at IS NULL"
        ),
        "a stay by an attending doctor from elsewhere": (
            "stay s WHERE NOT EXISTS (SELECT FROM role_grant g WHERE g.account_id = s.attending_doctor_id "
            "AND g.role = 'DOCTOR' AND g.dispensary_id = s.dispensary_id)"
        ),
        "a stay shorter than two days or longer than six weeks and a half": (
            "stay WHERE checked_out_at - checked_in_at NOT BETWEEN interval '2 days' AND interval '46 days'"
        ),
        "a diagnosis of another chapter": "stay WHERE diagnosis_code !~ '^F1[0-9]\\.[0-9]$'",
        "a name of the wrong grammatical sex": (
            "patient WHERE code_name IS NULL AND (family_name ~ '[ая]$' <> (sex = 'FEMALE') "
            "OR patronymic ~ 'на$' <> (sex = 'FEMALE'))"
        ),
        "a child": "patient WHERE birth_date > date '2026-03-09' - interval '18 years'",
        "a check-in at night": (
            "stay s JOIN dispensary d ON d.id = s.dispensary_id "
            "WHERE extract(hour FROM s.checked_in_at AT TIME ZONE d.time_zone) NOT BETWEEN 8 AND 21"
        ),
    }
    assert [name for name, sql in impossible.items() if await count(sql)] == []
    assert await count("stay WHERE greatest(checked_in_at, checked_out_at) >= $1", NOW) == 0
    assert await count("(SELECT DISTINCT time_zone FROM dispensary) z") == 5
    assert await count("stay WHERE checked_in_at < $1", NOW - timedelta(days=360)) > 0
    assert 1200 <= await count("stay") <= 1900
    assert 0.75 <= await count("stay WHERE checked_out_at IS NULL") / await count("bed") <= 0.85
    plenty = {
        "overdue": "stay WHERE checked_out_at IS NULL AND planned_check_out_on < '2026-03-09'",
        "transfers": "(SELECT stay_id FROM bed_assignment GROUP BY stay_id HAVING count(*) > 1) t",
        "code names": "patient WHERE code_name IS NOT NULL",
        "no patronymic": "patient WHERE code_name IS NULL AND patronymic IS NULL",
        "ё in a family name": "patient WHERE family_name LIKE '%ё%'",
        "beds being cleaned": "bed WHERE service_state = 'CLEANING'",
        "beds closed": "bed_closure WHERE reopened_at IS NULL",
        "reservations in force": "reservation WHERE ended_at IS NULL AND until > clock_timestamp()",
        "certificates still without paper": "certificate WHERE pdf IS NULL",
    }
    assert [name for name, sql in plenty.items() if await count(sql) < 3] == []


async def test_each_account_signs_in_with_its_role_where_it_says(
    database: Database, hasher: PasswordHasher
) -> None:
    accounts = await demo.fill(database, hasher=hasher, say=silent, now=NOW)
    moscow, yekaterinburg = [
        row["id"] for row in await database.fetch("SELECT id FROM dispensary ORDER BY id LIMIT 2")
    ]

    admin, doctor, other, dispatcher, patient = [
        await signed_in(database, hasher, account) for account in accounts
    ]

    assert admin.superadmin
    assert (doctor.doctor_of, other.doctor_of) == (frozenset({moscow}), frozenset({yekaterinburg}))
    assert dispatcher.dispatcher_of == {moscow}
    assert {role.value for role in patient.roles} == {"USER"}
    assert [account.role for account in accounts] == [
        "SUPERADMIN",
        "DOCTOR",
        "DOCTOR",
        "DISPATCHER",
        "USER",
    ]


async def test_nobody_signs_in_as_a_colleague(
    client: Client, database: Database, hasher: PasswordHasher
) -> None:
    accounts = await demo.fill(database, hasher=hasher, say=silent, now=NOW)
    colleague = await database.fetch_value("SELECT min(email) FROM account WHERE email LIKE 'colleague-%'")

    answers = [
        await client.http.post(
            "/auth/token", data={"grant_type": "password", "username": colleague, "password": password}
        )
        for password in ("-", *(account.password for account in accounts))
    ]

    assert {answer.json()["error"] for answer in answers} == {"invalid_grant"}


async def test_each_account_sees_its_part_of_the_network(
    client: Client, database: Database, hasher: PasswordHasher
) -> None:
    accounts = await demo.fill(database, hasher=hasher, say=silent, now=NOW)
    actors = [await signed_in(database, hasher, account) for account in accounts]

    seen = [await client.data("{ me { id } dispensaries { totalCount } }", actor) for actor in actors]

    assert [each["me"]["id"] for each in seen] == [gid("Account", actor.account_id) for actor in actors]
    assert [each["dispensaries"]["totalCount"] for each in seen] == [5, 1, 1, 1, 1]


async def test_the_first_query_answers_whoever_works_there(
    client: Client, database: Database, hasher: PasswordHasher
) -> None:
    accounts = await demo.fill(database, hasher=hasher, say=silent, now=NOW)

    seen = {
        account.email: (await client.data(demo.FIRST_QUERY, await signed_in(database, hasher, account)))[
            "dispensaries"
        ]["edges"]
        for account in accounts[:3]
    }

    assert [len(edges) for edges in seen.values()] == [5, 1, 1]
    counts = seen["doctor@example.org"][0]["node"]["bedCounts"]
    assert (counts["total"], counts["reserved"]) == (41, 2)
    assert counts["available"] >= 1


async def test_the_patient_sees_their_own_stays_and_certificate(
    client: Client, database: Database, hasher: PasswordHasher
) -> None:
    accounts = await demo.fill(database, hasher=hasher, say=silent, now=NOW)
    patient = await signed_in(database, hasher, accounts[-1])

    seen = await client.data(
        "{ me { name } patients { edges { node { familyName givenName stays { totalCount } } } } "
        "certificates { totalCount } }",
        patient,
    )

    [record] = [edge["node"] for edge in seen["patients"]["edges"]]
    assert seen["me"]["name"].startswith(f"{record['familyName']} {record['givenName']}")
    assert record["stays"]["totalCount"] >= 2
    assert seen["certificates"]["totalCount"] == 1


async def test_without_a_day_the_network_ends_today(database: Database, hasher: PasswordHasher) -> None:
    await demo.fill(database, hasher=hasher, say=silent)

    latest: datetime = await database.fetch_value("SELECT max(checked_in_at) FROM stay")

    assert 0 <= (datetime.now(UTC) - latest).total_seconds() < 7 * 86400
    assert all(len(account.password) >= 10 for account in demo.ACCOUNTS)
