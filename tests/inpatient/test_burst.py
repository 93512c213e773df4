"""A burst on one bed, as large as a network's worst minute: one winner, everybody else refused by name."""

import asyncio
from collections import Counter

from ekoyka.database import WARD_ROLE, Database
from ekoyka.errors import Refusal
from ekoyka.inpatient import reservations, stays
from ekoyka.inpatient.availability import BedOccupied
from ekoyka.inpatient.tables import Patient
from ekoyka.settings import Settings
from tests.factories import Factory
from tests.identity.transactions import answer
from tests.invariants import broken_invariants

BURST = 500


async def deadlocks(url: str, settings: Settings) -> int:
    """How many PostgreSQL has counted in this database; connections that are closed have told theirs."""
    async with Database(url, settings, pooled=False, role=WARD_ROLE) as database:
        counted: int = await database.fetch_value(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        return counted


async def test_of_five_hundred_check_ins_into_one_bed_one_wins_and_none_fails(
    database_url: str, database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    room = await make.room(place)
    bed, actor = await make.bed(place, room), await make.actor(doctor_of=(place,))
    others = [await make.bed(place, room) for _ in range(2)]
    async with database.transaction() as session:
        session.add_all(
            Patient(dispensary_id=place.id, record_number=str(number), code_name=str(number), sex="MALE")
            for number in range(BURST)
        )
    patients = [row["id"] for row in await database.fetch("SELECT id FROM patient ORDER BY id")]
    before = await deadlocks(database_url, settings)
    # As two processes would: pools of their own, far fewer connections than people.
    roomy = settings.model_copy(update={"write_pool_size": 30, "pool_timeout_s": 120.0})

    async with (
        Database(database_url, roomy, role=WARD_ROLE) as one,
        Database(database_url, roomy, role=WARD_ROLE) as other,
    ):
        ends = await asyncio.gather(
            *(
                answer(
                    (one, other)[number % 2], stays.check_in, actor=actor, patient_id=patient, bed_id=bed.id
                )
                for number, patient in enumerate(patients)
            )
        )

    codes = Counter(end.code if isinstance(end, Refusal) else "done" for end in ends)
    assert codes == {"done": 1, "BED_OCCUPIED": BURST - 1}
    refused = [end.fields for end in ends if isinstance(end, BedOccupied)]
    assert {tuple(fields["alternative_ids"]) for fields in refused} == {tuple(item.id for item in others)}
    assert len({fields["occupied_since"] for fields in refused}) == 1
    assert await deadlocks(database_url, settings) == before
    assert await database.fetch_value("SELECT count(*) FROM feed_event") == 1
    assert await broken_invariants(database) == []


async def test_a_reservation_that_lapses_amid_check_ins_leaves_the_feed_with_the_true_status(
    database_url: str, database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    room, actor = await make.room(place), await make.actor(doctor_of=(place,))
    beds = [await make.bed(place, room) for _ in range(20)]
    people = [await make.patient(place) for _ in beds]
    await database.fetch(
        "INSERT INTO reservation (bed_id, dispensary_id, reserved_at, until) "
        "SELECT id, dispensary_id, now() - interval '2 hours', now() - interval '1 hour' FROM bed"
    )

    ends = await asyncio.gather(
        *(
            answer(database, stays.check_in, actor=actor, patient_id=patient.id, bed_id=bed.id)
            for patient, bed in zip(people, beds, strict=True)
        ),
        *(answer(database, reservations.lapse_reservations) for _ in range(5)),
    )

    assert [end for end in ends if isinstance(end, Refusal)] == []
    last = await database.fetch(
        "SELECT DISTINCT ON (payload->>'bed') payload->>'status' AS status FROM feed_event "
        "ORDER BY payload->>'bed', cursor DESC"
    )
    assert {row["status"] for row in last} == {"OCCUPIED"}
    async with database.transaction() as session:
        await reservations.lapse_reservations(session)
    assert await database.fetch_value("SELECT count(*) FROM reservation WHERE ended_at IS NULL") == 0
