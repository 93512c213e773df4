"""Nothing runs for ever: a statement, a wait for a lock, an operation; and what was given up leaves nothing behind."""

import asyncio

import pytest
from sqlalchemy import text

from ekoyka.certificates import downloads
from ekoyka.database import Database
from ekoyka.settings import Settings
from tests.client import gid, serving
from tests.factories import Factory

CHECK_IN = """mutation ($p: ID!, $b: ID!) { stayCheckIn(input: {patientId: $p, bedId: $b}) {
  __typename ... on Refusal { code } } }"""


@pytest.mark.parametrize(
    "bounds", [{"operation_timeout_s": 0.3}, {"statement_timeout_s": 0.3}], ids=["operation", "statement"]
)
async def test_what_waits_too_long_for_a_lock_ends_by_name_and_its_connection_comes_back(
    settings: Settings, database: Database, make: Factory, bounds: dict[str, float]
) -> None:
    place = await make.dispensary()
    bed, patient, doctor = (
        await make.bed(place),
        await make.patient(place),
        await make.actor(doctor_of=(place,)),
    )
    given = {"p": gid("Patient", patient), "b": gid("Bed", bed)}
    narrow = settings.model_copy(update={**bounds, "write_pool_size": 2, "read_pool_size": 2})
    async with serving(narrow) as client:
        async with database.transaction() as session:
            await session.execute(text("SELECT 1 FROM bed WHERE id = :id FOR UPDATE"), {"id": bed.id})
            # More than there are connections: each must have come back for the next.
            codes = [await client.codes(CHECK_IN, doctor, **given) for _ in range(4)]
        after = await client.data(CHECK_IN, doctor, **given)

        assert codes == [["TIMED_OUT"]] * 4
        assert after["stayCheckIn"]["__typename"] == "Stay"
        assert client.services.database.pool_use["write"] == (0, 2)


async def test_a_slow_read_ends_by_name_and_its_connection_comes_back(
    settings: Settings, database: Database, make: Factory
) -> None:
    place, boss = await make.dispensary(), await make.actor(superadmin=True)
    narrow = settings.model_copy(update={"operation_timeout_s": 0.3, "read_pool_size": 2})
    query = "query ($id: ID!) { dispensary(id: $id) { name } }"
    async with serving(narrow) as client:
        async with database.transaction() as session:
            await session.execute(text("LOCK TABLE dispensary IN ACCESS EXCLUSIVE MODE"))
            answers = await asyncio.gather(
                *(client.codes(query, boss, id=gid("Dispensary", place)) for _ in range(6))
            )
        after = await client.data(query, boss, id=gid("Dispensary", place))

        assert answers == [["TIMED_OUT"]] * 6
        assert after["dispensary"]["name"] == place.name
        assert client.services.database.pool_use["read"] == (0, 2)


async def test_it_is_said_that_the_same_request_may_succeed_later(
    settings: Settings, database: Database, make: Factory
) -> None:
    place, boss = await make.dispensary(), await make.actor(superadmin=True)
    narrow = settings.model_copy(update={"operation_timeout_s": 0.2})
    async with serving(narrow) as hasty, database.transaction() as session:
        await session.execute(text("LOCK TABLE dispensary IN ACCESS EXCLUSIVE MODE"))
        answer = await hasty.http.post(
            "/graphql",
            json={"query": f'{{ dispensary(id: "{gid("Dispensary", place)}") {{ name }} }}'},
            headers={"authorization": f"Bearer {hasty.token(boss)}"},
        )

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["data"] is None


async def test_pages_and_forms_that_take_too_long_say_nothing_but_that(
    settings: Settings, database: Database
) -> None:
    """Above all not that there is no such certificate."""
    narrow = settings.model_copy(update={"operation_timeout_s": 0.5, "statement_timeout_s": 0.3})
    form = {"grant_type": "password", "username": "anna@example.org", "password": "a long enough password"}
    async with serving(narrow) as hasty, database.transaction() as session:
        file = downloads.name(hasty.services.download_keys[0], 1, 2**33)
        await session.execute(text("LOCK TABLE certificate, account, rate IN ACCESS EXCLUSIVE MODE"))
        answers = [
            await hasty.http.get("/verify/0123456789"),
            await hasty.http.get(f"/certificates/{file}.pdf"),
            await hasty.http.post("/auth/token", data=form),
            await hasty.http.post("/auth/refresh", data={"refresh_token": "x"}),
        ]
        await session.execute(text("LOCK TABLE bed, alembic_version IN ACCESS EXCLUSIVE MODE"))
        ready, metrics = await hasty.http.get("/readyz"), await hasty.http.get("/metrics")

    assert [answer.status_code for answer in answers[:3]] == [503] * 3
    assert all(answer.headers["retry-after"] for answer in answers[:3])
    assert answers[3].status_code == 400  # which asks none of these
    assert (ready.status_code, ready.json()["database"]) == (503, False)
    assert metrics.status_code == 200
