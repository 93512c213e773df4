"""Creating, editing and deleting dispensaries, rooms and beds: success, every refusal, races."""

import asyncio
from typing import Any

import pytest

from ekoyka.database import Database
from ekoyka.errors import Invalid, NotFound, VersionConflict
from ekoyka.facilities import operations
from ekoyka.facilities.operations import Archived, HasHistory, LabelTaken, NumberTaken
from ekoyka.facilities.tables import Bed, Dispensary, Room
from ekoyka.inpatient import availability
from tests.factories import Factory
from tests.identity.transactions import answer, run

DETAILS = {
    "name": " Диспансер № 1 ",
    "neutral_name": "Больница № 1",
    "address": "Томск, Лесная, 5",
    "time_zone": "Asia/Tomsk",
}


async def test_a_dispensary_is_created_with_its_texts_trimmed(database: Database) -> None:
    row = await run(database, operations.create_dispensary, details={**DETAILS, "phone": "+7 495 000-00-00"})

    assert (row.name, row.phone, row.version) == ("Диспансер № 1", "+74950000000", 1)


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"name": "  "}, "name"),
        ({"name": "д" * 201}, "name"),
        ({"name": "две\nстроки"}, "name"),
        ({"time_zone": "Europe/Atlantis"}, "timeZone"),
        ({"staffed_beds": -1}, "staffedBeds"),
        ({"latitude": 91}, "latitude"),
        ({"phone": "позвоните"}, "phone"),
    ],
)
async def test_a_dispensary_with_a_wrong_value_is_refused_by_the_fields_name(
    database: Database, wrong: dict[str, Any], path: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await run(database, operations.create_dispensary, details={**DETAILS, **wrong})

    assert refused.value.path == (path,)
    assert all(refused.value.message(language).strip(".") for language in ("ru", "en"))


async def test_update_changes_what_is_given_and_counts_the_version(database: Database, make: Factory) -> None:
    place = await make.dispensary(staffed_beds=20)
    actor = await make.actor(doctor_of=(place,))

    row = await run(
        database,
        operations.update_dispensary,
        actor=actor,
        dispensary_id=place.id,
        version=1,
        changes={"name": "Новое имя", "staffed_beds": None},
    )

    assert (row.name, row.staffed_beds, row.address, row.version) == ("Новое имя", None, place.address, 2)


async def test_of_two_updates_from_one_version_the_second_is_refused(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    actor = await make.actor(superadmin=True)

    ends = await asyncio.gather(
        *(
            answer(
                database,
                operations.update_dispensary,
                actor=actor,
                dispensary_id=place.id,
                version=1,
                changes={"name": name},
            )
            for name in ("Первый", "Второй")
        )
    )

    (refusal,) = (end for end in ends if isinstance(end, VersionConflict))
    assert refusal.fields == {"object_type": "Dispensary", "object_id": place.id, "current_version": 2}


async def test_what_lies_outside_the_scope_does_not_exist(database: Database, make: Factory) -> None:
    here, there = await make.dispensary(), await make.dispensary()
    stranger = await make.actor(doctor_of=(there,), dispatcher_of=(here,))
    room = await make.room(here)
    bed = await make.bed(here, room)
    own = await make.bed(there)

    for verb, arguments in (
        (operations.update_dispensary, {"dispensary_id": here.id, "version": 1, "changes": {}}),
        (operations.create_room, {"dispensary_id": here.id, "details": {"number": "1"}}),
        (operations.update_room, {"room_id": room.id, "version": 1, "changes": {}}),
        (operations.create_bed, {"room_id": room.id, "details": {"label": "1"}}),
        (operations.update_bed, {"bed_id": bed.id, "version": 1, "changes": {}}),
        (operations.update_bed, {"bed_id": own.id, "version": 1, "changes": {}, "room_id": room.id}),
        (operations.delete, {"table": Bed, "key": bed.id, "version": 1}),
        (operations.update_room, {"room_id": 10**12, "version": 1, "changes": {}}),
    ):
        with pytest.raises(NotFound):
            await run(database, verb, actor=stranger, **arguments)


async def test_a_number_and_a_label_are_unique_until_their_owners_are_archived(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    actor = await make.actor(superadmin=True)
    room = await make.room(place, number="12а")
    bed = await make.bed(place, room, label="1")
    number: dict[str, Any] = {"actor": actor, "dispensary_id": place.id, "details": {"number": " 12а "}}
    label: dict[str, Any] = {"actor": actor, "room_id": room.id, "details": {"label": "1"}}

    with pytest.raises(NumberTaken):
        await run(database, operations.create_room, **number)
    with pytest.raises(LabelTaken):
        await run(database, operations.create_bed, **label)
    await run(database, availability.archive, Bed, actor=actor, key=bed.id, version=1)
    again = await run(database, operations.create_bed, **label)
    await run(database, availability.archive, Room, actor=actor, key=room.id, version=1)
    await run(database, operations.create_room, **number)

    assert again.label == "1"


async def test_of_many_rooms_of_one_number_at_once_one_is_created(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    actor = await make.actor(superadmin=True)

    ends = await asyncio.gather(
        *(
            answer(
                database,
                operations.create_room,
                actor=actor,
                dispensary_id=place.id,
                details={"number": "7", "floor": 2},
            )
            for _ in range(10)
        )
    )

    assert sum(isinstance(end, Room) for end in ends) == 1
    assert sum(isinstance(end, NumberTaken) for end in ends) == 9


async def test_nothing_is_put_into_an_archived_place(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    actor = await make.actor(superadmin=True)
    room = await make.room(place)
    bed = await make.bed(place)
    await run(database, availability.archive, Room, actor=actor, key=room.id, version=1)

    with pytest.raises(Archived):
        await run(database, operations.create_bed, actor=actor, room_id=room.id, details={"label": "1"})
    with pytest.raises(Archived):
        await run(
            database,
            operations.update_bed,
            actor=actor,
            bed_id=bed.id,
            version=1,
            changes={},
            room_id=room.id,
        )
    await run(database, availability.archive, Dispensary, actor=actor, key=place.id, version=1)
    with pytest.raises(Archived):
        await run(
            database, operations.create_room, actor=actor, dispensary_id=place.id, details={"number": "1"}
        )


async def test_a_bed_moves_to_another_room_of_its_dispensary_only(database: Database, make: Factory) -> None:
    place, other = await make.dispensary(), await make.dispensary()
    actor = await make.actor(doctor_of=(place, other))
    bed, room = await make.bed(place), await make.room(place)

    moved = await run(
        database,
        operations.update_bed,
        actor=actor,
        bed_id=bed.id,
        version=1,
        changes={"label": "у окна"},
        room_id=room.id,
    )
    with pytest.raises(NotFound):
        await run(
            database,
            operations.update_bed,
            actor=actor,
            bed_id=bed.id,
            version=2,
            changes={},
            room_id=(await make.room(other)).id,
        )

    assert (moved.room_id, moved.label, moved.version) == (room.id, "у окна", 2)


async def test_what_nothing_refers_to_is_deleted(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    actor = await make.actor(superadmin=True)
    room = await make.room(place)
    bed = await make.bed(place, room)

    for table, key in ((Bed, bed.id), (Room, room.id), (Dispensary, place.id)):
        await run(database, operations.delete, table, actor=actor, key=key, version=1)

    assert await database.fetch_value("SELECT count(*) FROM dispensary") == 0


async def test_what_has_history_is_never_deleted(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    actor = await make.actor(superadmin=True)
    room = await make.room(place)
    bed = await make.bed(place, room)
    await make.stay(await make.patient(place), bed)

    for table, key in ((Bed, bed.id), (Room, room.id), (Dispensary, place.id)):
        with pytest.raises(HasHistory):
            await run(database, operations.delete, table, actor=actor, key=key, version=1)
    with pytest.raises(VersionConflict):
        await run(database, operations.delete, Bed, actor=actor, key=bed.id, version=5)

    assert await database.fetch_value("SELECT count(*) FROM bed") == 1


async def test_the_feed_tells_of_beds_that_come_and_go(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    room, admin = await make.room(place), await make.actor(superadmin=True)

    async with database.transaction() as session:
        bed = await availability.add_bed(session, actor=admin, room_id=room.id, details={"label": "7"})
    async with database.transaction() as session:
        await availability.delete_bed(session, actor=admin, bed_id=bed.id, version=1)

    events = await database.fetch(
        "SELECT payload->>'change', payload->>'status' FROM feed_event ORDER BY cursor"
    )
    assert [tuple(row) for row in events] == [("CREATED", "FREE"), ("DELETED", None)]
    assert await database.fetch_value("SELECT count(*) FROM bed") == 0
