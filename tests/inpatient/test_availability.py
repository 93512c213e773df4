"""Service states, closures, reservations, archiving and the beds that suit: success, every refusal, races."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ekoyka.database import Database
from ekoyka.errors import Forbidden, Invalid, NotFound, Refusal, VersionConflict
from ekoyka.facilities import operations
from ekoyka.facilities.operations import Archived
from ekoyka.facilities.tables import Bed, Dispensary, Room, ServiceState
from ekoyka.inpatient import availability, reservations, stays
from ekoyka.inpatient.availability import BedClosed, BedNotReady, BedOccupied, BedReserved, HasOpenStays
from ekoyka.inpatient.queries import bed_options
from ekoyka.inpatient.reservations import ReservationEnded
from ekoyka.inpatient.tables import Outcome, Reservation
from tests.factories import Factory
from tests.identity.transactions import answer, run, until_one_waits
from tests.invariants import broken_invariants


def hours_on(count: float) -> datetime:
    return datetime.now(UTC) + timedelta(hours=count)


async def feed_of(database: Database, place: Dispensary) -> list[tuple[int, str, str]]:
    """What the dispensary's feed tells: bed, change, status."""
    rows = await database.fetch(
        "SELECT (payload->>'bed')::bigint, payload->>'change', payload->>'status' FROM feed_event "
        "WHERE topic = 'beds:' || $1::text ORDER BY cursor",
        str(place.id),
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def test_a_closure_is_an_interval_with_a_reason_that_returning_to_service_ends(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    bed, actor = await make.bed(place), await make.actor(doctor_of=(place,))
    arguments: dict[str, Any] = {"actor": actor, "bed_id": bed.id}

    await run(
        database,
        availability.set_service_state,
        **arguments,
        state=ServiceState.CLOSED,
        reason=" течёт крыша ",
    )
    await run(database, availability.set_service_state, **arguments, state=ServiceState.IN_SERVICE)

    closure = (await database.fetch("SELECT reason, closed_by_id, reopened_at FROM bed_closure"))[0]
    assert (closure["reason"], closure["closed_by_id"]) == ("течёт крыша", actor.account_id)
    assert closure["reopened_at"] is not None
    assert await feed_of(database, place) == [
        (bed.id, "SERVICE_STATE_CHANGED", "CLOSED"),
        (bed.id, "SERVICE_STATE_CHANGED", "FREE"),
    ]


async def test_closing_needs_a_reason_and_an_open_empty_bed_that_is_kept_for_nobody(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    actor = await make.actor(doctor_of=(place,))
    free, taken, kept = [await make.bed(place) for _ in range(3)]
    await make.stay(await make.patient(place), taken)
    until = hours_on(1)
    await run(database, reservations.reserve_bed, actor=actor, bed_id=kept.id, until=until, patient_id=None)

    async def close(bed: Bed, reason: str | None = "ремонт") -> None:
        await run(
            database,
            availability.set_service_state,
            actor=actor,
            bed_id=bed.id,
            state=ServiceState.CLOSED,
            reason=reason,
        )

    for reason in (None, "  ", "р" * 1001):
        with pytest.raises(Invalid) as unsaid:
            await close(free, reason)
        assert unsaid.value.path == ("reason",)
    with pytest.raises(BedOccupied):
        await close(taken)
    with pytest.raises(BedReserved) as reserved:
        await close(kept)
    await close(free)
    with pytest.raises(BedClosed) as closed:
        await close(free, "другая причина")

    assert reserved.value.fields["reserved_until"] == until
    assert closed.value.fields["reason"] == "ремонт"


@pytest.mark.parametrize(
    "state", [ServiceState.CLEANING, ServiceState.CONTAMINATED, ServiceState.ISOLATED, ServiceState.CLOSED]
)
async def test_a_bed_is_taken_from_under_nobody(
    database: Database, make: Factory, state: ServiceState
) -> None:
    place = await make.dispensary()
    bed = await make.bed(place)
    await make.stay(await make.patient(place), bed)

    with pytest.raises(BedOccupied):
        await run(
            database,
            availability.set_service_state,
            actor=await make.actor(doctor_of=(place,)),
            bed_id=bed.id,
            state=state,
            reason="ремонт",
        )

    assert await database.fetch_value("SELECT service_state FROM bed") == "IN_SERVICE"


async def test_a_bed_is_reserved_for_a_patient_or_for_somebody_on_the_way(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    doctor, dispatcher = await make.actor(doctor_of=(place,)), await make.actor(dispatcher_of=(place,))
    first, second, patient = await make.bed(place), await make.bed(place), await make.patient(place)

    named = await run(
        database,
        reservations.reserve_bed,
        actor=doctor,
        bed_id=first.id,
        until=hours_on(2),
        patient_id=patient.id,
    )
    unnamed = await run(
        database,
        reservations.reserve_bed,
        actor=dispatcher,
        bed_id=second.id,
        until=hours_on(2),
        patient_id=None,
    )

    assert (named.patient_id, named.reserved_by_id) == (patient.id, doctor.account_id)
    assert (unnamed.patient_id, unnamed.reserved_by_id) == (None, dispatcher.account_id)
    assert await feed_of(database, place) == [
        (first.id, "RESERVED", "RESERVED"),
        (second.id, "RESERVED", "RESERVED"),
    ]


async def test_reserving_is_refused_by_name(database: Database, make: Factory) -> None:
    place, elsewhere = await make.dispensary(), await make.dispensary()
    doctor, dispatcher = await make.actor(doctor_of=(place,)), await make.actor(dispatcher_of=(place,))
    free, taken, patient = await make.bed(place), await make.bed(place), await make.patient(place)
    dirty, closed = [await make.bed(place, service_state=state) for state in ("CLEANING", "CLOSED")]
    archived_bed = await make.bed(place, archived_at=datetime.now(UTC))
    archived = await make.patient(place, archived_at=datetime.now(UTC))
    await make.stay(await make.patient(place), taken)
    foreign_bed, foreign_patient = await make.bed(elsewhere), await make.patient(elsewhere)
    cases: list[tuple[type[Refusal], dict[str, Any]]] = [
        (Forbidden, {"actor": dispatcher, "patient_id": patient.id}),
        (Invalid, {"until": hours_on(-1)}),
        (Invalid, {"until": hours_on(31 * 24)}),
        (BedOccupied, {"bed_id": taken.id}),
        (BedNotReady, {"bed_id": dirty.id}),
        (BedClosed, {"bed_id": closed.id}),
        (NotFound, {"bed_id": archived_bed.id}),
        (NotFound, {"bed_id": foreign_bed.id}),
        (NotFound, {"bed_id": 10**12}),
        (NotFound, {"patient_id": foreign_patient.id}),
        (Archived, {"patient_id": archived.id}),
    ]

    for refusal, change in cases:
        usual = {"actor": doctor, "bed_id": free.id, "until": hours_on(1), "patient_id": None}
        with pytest.raises(refusal):
            await run(database, reservations.reserve_bed, **{**usual, **change})

    assert await database.fetch_value("SELECT count(*) FROM reservation") == 0


async def test_of_forty_reservations_of_one_bed_one_is_made(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    bed, actor = await make.bed(place), await make.actor(dispatcher_of=(place,))
    until = hours_on(1)

    ends = await asyncio.gather(
        *(
            answer(
                database, reservations.reserve_bed, actor=actor, bed_id=bed.id, until=until, patient_id=None
            )
            for _ in range(40)
        )
    )

    assert sum(not isinstance(end, Refusal) for end in ends) == 1
    refused = [end for end in ends if isinstance(end, BedReserved)]
    assert len(refused) == 39
    assert {end.fields["reserved_until"] for end in refused} == {until}


async def test_a_reservation_is_released_once(database: Database, make: Factory) -> None:
    place, elsewhere = await make.dispensary(), await make.dispensary()
    bed, actor = await make.bed(place), await make.actor(dispatcher_of=(place,))
    kept = await run(
        database, reservations.reserve_bed, actor=actor, bed_id=bed.id, until=hours_on(1), patient_id=None
    )

    with pytest.raises(NotFound):
        await run(
            database,
            reservations.release_reservation,
            actor=await make.actor(doctor_of=(elsewhere,)),
            reservation_id=kept.id,
        )
    released = await run(database, reservations.release_reservation, actor=actor, reservation_id=kept.id)
    with pytest.raises(ReservationEnded):
        await run(database, reservations.release_reservation, actor=actor, reservation_id=kept.id)
    with pytest.raises(NotFound):
        await run(database, reservations.release_reservation, actor=actor, reservation_id=10**12)

    assert released.outcome == "RELEASED"
    assert (await feed_of(database, place))[-1] == (bed.id, "RESERVATION_RELEASED", "FREE")
    assert await database.fetch_value("SELECT action FROM access_entry ORDER BY id DESC") == (
        "reservation_release"
    )


async def _overdue(make: Factory, bed: Bed) -> Reservation:
    return await make.keep(
        Reservation(
            bed_id=bed.id,
            dispensary_id=bed.dispensary_id,
            reserved_at=hours_on(-2),
            until=hours_on(-1),
        )
    )


async def test_reservations_lapse_once_though_several_processes_see_to_it(
    database: Database, make: Factory
) -> None:
    places = [await make.dispensary() for _ in range(3)]
    beds = [await make.bed(place) for place in places for _ in range(4)]
    for bed in beds:
        await _overdue(make, bed)
    lasting = await make.bed(places[0])
    await make.keep(Reservation(bed_id=lasting.id, dispensary_id=lasting.dispensary_id, until=hours_on(1)))

    counts = await asyncio.gather(*(run(database, reservations.lapse_reservations) for _ in range(5)))

    assert sum(counts) == len(beds)
    told = [event for place in places for event in await feed_of(database, place)]
    assert sorted(told) == [(bed.id, "RESERVATION_LAPSED", "FREE") for bed in beds]
    rows = await database.fetch("SELECT outcome, ended_at = until AS then FROM reservation ORDER BY id")
    assert [tuple(row) for row in rows] == [("LAPSED", True)] * len(beds) + [(None, None)]


async def test_a_reservation_that_ran_out_unnoticed_stands_in_nobodys_way(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    bed, other = await make.bed(place), await make.bed(place)
    actor = await make.actor(doctor_of=(place,))
    for item in (bed, other):
        await _overdue(make, item)

    await run(
        database,
        stays.check_in,
        actor=actor,
        patient_id=(await make.patient(place)).id,
        bed_id=bed.id,
    )
    await run(
        database, reservations.reserve_bed, actor=actor, bed_id=other.id, until=hours_on(1), patient_id=None
    )

    assert [event[1:] for event in await feed_of(database, place)] == [
        ("CHECKED_IN", "OCCUPIED"),
        ("RESERVATION_LAPSED", "RESERVED"),
        ("RESERVED", "RESERVED"),
    ]


async def test_archiving_takes_what_is_inside_along_and_tells_the_feed(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    room = await make.room(place)
    beds = [await make.bed(place, room) for _ in range(2)]
    actor = await make.actor(superadmin=True)

    await run(database, availability.archive, Dispensary, actor=actor, key=place.id, version=1)

    for table in ("dispensary", "room", "bed"):
        assert await database.fetch_value(f"SELECT bool_and(archived_at IS NOT NULL) FROM {table}")
    assert [event[:2] for event in await feed_of(database, place)] == [(bed.id, "ARCHIVED") for bed in beds]


@pytest.mark.parametrize("table", [Bed, Room, Dispensary])
async def test_what_is_used_is_not_archived(
    database: Database, make: Factory, table: type[Bed] | type[Room] | type[Dispensary]
) -> None:
    place = await make.dispensary()
    room = await make.room(place)
    bed = await make.bed(place, room)
    actor = await make.actor(superadmin=True)
    key = {Bed: bed.id, Room: room.id, Dispensary: place.id}[table]
    stay = await make.stay(await make.patient(place), bed)

    with pytest.raises(HasOpenStays) as occupied:
        await run(database, availability.archive, table, actor=actor, key=key, version=1)
    await run(database, stays.check_out, actor=actor, stay_id=stay.id, version=1, outcome=Outcome.DIED)
    await run(
        database, reservations.reserve_bed, actor=actor, bed_id=bed.id, until=hours_on(1), patient_id=None
    )
    with pytest.raises(BedReserved) as reserved:
        await run(database, availability.archive, table, actor=actor, key=key, version=1)
    with pytest.raises(VersionConflict):
        await run(database, availability.archive, table, actor=actor, key=key, version=9)
    with pytest.raises(NotFound):
        await run(database, availability.archive, table, actor=actor, key=10**12, version=1)

    assert occupied.value.fields == {"open_stays": 1}
    assert reserved.value.fields["bed_id"] == bed.id
    assert await database.fetch_value(f"SELECT archived_at FROM {table.__name__.lower()}") is None


async def test_a_bed_put_into_a_room_while_it_is_archived_is_archived_too(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    room, actor = await make.room(place), await make.actor(superadmin=True)

    async with database.transaction() as session:
        bed = await operations.create_bed(session, actor=actor, room_id=room.id, details={"label": "1"})
        archiving = asyncio.create_task(
            run(database, availability.archive, Dispensary, actor=actor, key=place.id, version=1)
        )
        await until_one_waits(database)
    await archiving

    assert await database.fetch_value("SELECT archived_at IS NOT NULL FROM bed WHERE id = $1", bed.id)


async def test_a_check_in_that_is_under_way_is_seen_by_archiving(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    bed, patient, actor = (
        await make.bed(place),
        await make.patient(place),
        await make.actor(superadmin=True),
    )

    async with database.transaction() as session:
        await stays.check_in(session, actor=actor, patient_id=patient.id, bed_id=bed.id)
        archiving = asyncio.create_task(
            answer(database, availability.archive, Dispensary, actor=actor, key=place.id, version=1)
        )
        await until_one_waits(database)
    ending = await archiving

    assert isinstance(ending, HasOpenStays)
    assert await database.fetch_value("SELECT count(*) FROM bed WHERE archived_at IS NULL") == 1


async def _options(database: Database, patient_id: int, place: Dispensary) -> list[tuple[int, list[str]]]:
    rows = await database.fetch(
        f"SELECT * FROM {bed_options('$1::bigint', '$2::bigint')} x ORDER BY place", patient_id, place.id
    )
    assert all(row["suits"] == (row["obstacles"] == []) for row in rows)
    assert [row["place"] for row in rows] == list(range(1, len(rows) + 1))
    return [(row["bed_id"], row["obstacles"]) for row in rows]


async def test_bed_options_come_best_first(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    anyone = await make.room(place, number="1", sex="ANY")
    men2, men10 = (
        await make.room(place, number="2", sex="MALE"),
        await make.room(place, number="10", sex="MALE"),
    )
    company = await make.room(place, number="30", sex="MALE")
    patient = await make.patient(place, sex="MALE")
    last = await make.bed(place, anyone)
    tenth, second = await make.bed(place, men10), await make.bed(place, men2)
    beside, taken = await make.bed(place, company), await make.bed(place, company)
    kept = await make.bed(place, anyone)
    await make.stay(await make.patient(place), taken)
    await make.keep(
        Reservation(bed_id=kept.id, dispensary_id=place.id, patient_id=patient.id, until=hours_on(1))
    )

    found = await _options(database, patient.id, place)

    assert [bed for bed, _ in found] == [kept.id, beside.id, second.id, tenth.id, last.id, taken.id]


async def test_bed_options_say_why_each_bed_is_left_out(database: Database, make: Factory) -> None:
    place = await make.dispensary(staffed_beds=1)
    room = await make.room(place, sex="ANY")
    women = await make.room(place, sex="FEMALE")
    apart = await make.room(place, isolation=True)
    patient = await make.patient(place, sex="MALE")
    secluded = await make.patient(place, sex="MALE", needs_isolation=True)
    beds = {
        "OCCUPIED": await make.bed(place, room),
        "RESERVED": await make.bed(place, room),
        "ROOM_SEX": await make.bed(place, women),
        "ISOLATION_ROOM": await make.bed(place, apart),
        **{
            state: await make.bed(place, room, service_state=state)
            for state in ("CLEANING", "CONTAMINATED", "ISOLATED", "CLOSED")
        },
    }
    free = await make.bed(place, room)
    await make.bed(place, room, archived_at=datetime.now(UTC))
    await make.keep(Reservation(bed_id=beds["RESERVED"].id, dispensary_id=place.id, until=hours_on(1)))

    await make.stay(await make.patient(place), beds["OCCUPIED"])
    full = dict(await _options(database, patient.id, place))
    async with database.transaction() as session:
        row = await session.get(Dispensary, place.id)
        assert row is not None
        row.staffed_beds = 2
    roomy = dict(await _options(database, patient.id, place))
    apart_only = dict(await _options(database, secluded.id, place))

    assert all(obstacles[-1] == "STAFFED_LIMIT" for obstacles in full.values())
    assert roomy == {free.id: [], **{bed.id: [why] for why, bed in beds.items()}}
    assert apart_only[beds["ISOLATION_ROOM"].id] == []
    assert apart_only[free.id] == ["ISOLATION_NEEDED"]


async def test_a_refusal_suggests_no_more_than_three_beds_that_suit(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    room, women = await make.room(place), await make.room(place, sex="FEMALE")
    taken = await make.bed(place, room)
    await make.bed(place, women)
    others = [await make.bed(place, room) for _ in range(5)]
    await make.stay(await make.patient(place), taken, planned_check_out_on=date(2031, 5, 1))

    with pytest.raises(BedOccupied) as refused:
        await run(
            database,
            reservations.reserve_bed,
            actor=await make.actor(doctor_of=(place,)),
            bed_id=taken.id,
            until=hours_on(1),
            patient_id=(await make.patient(place)).id,
        )

    assert refused.value.fields["alternative_ids"] == [bed.id for bed in others[:3]]
    assert refused.value.fields["expected_end_on"] == date(2031, 5, 1)
    assert await broken_invariants(database) == []
