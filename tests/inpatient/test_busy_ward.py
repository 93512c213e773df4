"""A busy ward: several people do random things at once, and every invariant holds afterwards.

Any failure that is not a refusal (a deadlock, a constraint nobody named) fails the test by itself.
"""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ekoyka.database import Database
from ekoyka.errors import Refusal
from ekoyka.facilities import operations
from ekoyka.facilities.tables import Bed, Dispensary, Room, ServiceState
from ekoyka.identity.actors import Actor
from ekoyka.inpatient import availability, corrections, patients, reservations, stays
from ekoyka.inpatient.queries import bed_status
from ekoyka.inpatient.tables import Outcome
from tests.factories import Factory
from tests.identity.transactions import answer
from tests.invariants import broken_invariants


class _Somebody:
    """Does one random thing after another, on what the database holds at that moment."""

    def __init__(self, database: Database, actor: Actor, seed: str) -> None:
        self.database = database
        self.actor = actor
        self.chance = random.Random(seed)  # noqa: S311 -- repeatable, not secret
        self.ends: list[str] = []

    async def _any(self, sql: str) -> Any:
        rows = await self.database.fetch(sql)
        return self.chance.choice(rows) if rows else None

    def _moment(self) -> datetime | None:
        return self.chance.choice(
            [
                None,
                datetime.now(UTC) - timedelta(hours=self.chance.uniform(0, 200)),
                datetime(2020, 1, 1, tzinfo=UTC),
            ]
        )

    async def _act(self) -> Any:
        bed = await self._any("SELECT id, version FROM bed")
        patient = await self._any("SELECT id, version FROM patient")
        stay = await self._any(
            "SELECT id, version FROM stay ORDER BY checked_out_at IS NULL DESC, id DESC LIMIT 12"
        )
        kept = await self._any("SELECT id FROM reservation WHERE ended_at IS NULL")
        room = await self._any("SELECT id, version FROM room")
        do, actor = self.chance.random(), self.actor
        if do < 0.3 or stay is None:
            return await answer(
                self.database,
                stays.check_in,
                actor=actor,
                patient_id=patient["id"],
                bed_id=bed["id"],
                at=self._moment(),
                reservation_id=kept and kept["id"],
            )
        the_stay: dict[str, Any] = {"actor": actor, "stay_id": stay["id"], "version": stay["version"]}
        if do < 0.45:
            return await answer(
                self.database, stays.transfer, **the_stay, bed_id=bed["id"], at=self._moment()
            )
        if do < 0.57:
            return await answer(
                self.database,
                stays.check_out,
                **the_stay,
                outcome=self.chance.choice(list(Outcome)),
                at=self._moment(),
            )
        if do < 0.72:
            return await answer(
                self.database,
                corrections.correct,
                **the_stay,
                reason="ошибка записи",
                checked_in_at=self._moment(),
                checked_out_at=self._moment(),
                bed_id=self.chance.choice([None, bed["id"]]),
            )
        if do < 0.82:
            # Some last an instant, so that they run out in the middle of it all.
            until = datetime.now(UTC) + timedelta(seconds=self.chance.choice([0.02, 3600]))
            return await answer(
                self.database,
                reservations.reserve_bed,
                actor=actor,
                bed_id=bed["id"],
                until=until,
                patient_id=self.chance.choice([None, patient["id"]]),
            )
        if do < 0.86:
            return await answer(self.database, reservations.lapse_reservations)
        if do < 0.94:
            return await answer(
                self.database,
                availability.set_service_state,
                actor=actor,
                bed_id=bed["id"],
                state=self.chance.choice([ServiceState.IN_SERVICE] * 3 + list(ServiceState)),
                reason="ремонт",
            )
        if do < 0.96:
            return await answer(
                self.database,
                operations.update_bed,
                actor=actor,
                bed_id=bed["id"],
                version=bed["version"],
                changes={},
                room_id=room["id"],
            )
        if do < 0.98:
            return await answer(
                self.database,
                patients.set_archived,
                actor=actor,
                patient_id=patient["id"],
                version=patient["version"],
                archived=self.chance.choice([True, False]),
            )
        table, key = self.chance.choice([(Bed, bed), (Room, room)])
        return await answer(
            self.database, availability.archive, table, actor=actor, key=key["id"], version=key["version"]
        )

    async def work(self, count: int) -> None:
        for _ in range(count):
            end = await self._act()
            self.ends.append(end.code if isinstance(end, Refusal) else "done")


@pytest.mark.parametrize("seed", range(3))
async def test_every_invariant_holds_after_a_busy_time(database: Database, make: Factory, seed: int) -> None:
    place = await make.dispensary(cleaning_after_check_out=bool(seed % 2))
    rooms = [await make.room(place, sex=sex) for sex in ("ANY", "ANY", "MALE")]
    for room in rooms:
        for _ in range(3):
            await make.bed(place, room)
    for number in range(10):
        await make.patient(place, sex="FEMALE" if number % 4 == 0 else "MALE")
    people = [
        _Somebody(database, await make.actor(superadmin=True), f"{seed} {number}") for number in range(6)
    ]

    await asyncio.gather(*(somebody.work(60) for somebody in people))
    # The shortest of the last reservations have run out by now; what runs out later would be told later.
    await asyncio.sleep(0.03)
    async with database.transaction() as session:
        await reservations.lapse_reservations(session)

    assert await broken_invariants(database) == []
    ends = {end for somebody in people for end in somebody.ends}
    assert {"done", "BED_OCCUPIED", "PATIENT_ALREADY_ADMITTED"} <= ends
    questions = {
        "an archived bed in use": (
            "SELECT b.id FROM bed b JOIN bed_assignment a ON a.bed_id = b.id AND a.ended_at IS NULL "
            "WHERE b.archived_at IS NOT NULL"
        ),
        "a bed in use that is out of service": (
            "SELECT b.id FROM bed b JOIN bed_assignment a ON a.bed_id = b.id AND a.ended_at IS NULL "
            "WHERE b.service_state <> 'IN_SERVICE'"
        ),
        "a closure that does not fit the bed's state": (
            "SELECT b.id FROM bed b LEFT JOIN bed_closure c ON c.bed_id = b.id AND c.reopened_at IS NULL "
            "WHERE (c.id IS NOT NULL) <> (b.service_state = 'CLOSED')"
        ),
        "an archived patient who stays": (
            "SELECT p.id FROM patient p JOIN stay s ON s.patient_id = p.id AND s.checked_out_at IS NULL "
            "WHERE p.archived_at IS NOT NULL"
        ),
        "a bed that the feed leaves in another status": (
            "SELECT b.id FROM bed b CROSS JOIN LATERAL (SELECT e.payload->>'status' AS status FROM feed_event e "
            "WHERE (e.payload->>'bed')::bigint = b.id ORDER BY e.cursor DESC LIMIT 1) told "
            f"WHERE told.status <> {bed_status('b')}"
        ),
    }
    assert [name for name, question in questions.items() if await database.fetch(question)] == []


async def test_archiving_a_dispensary_amid_check_ins_leaves_nobody_behind(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    room, actor = await make.room(place), await make.actor(superadmin=True)
    beds = [await make.bed(place, room) for _ in range(6)]
    people = [await make.patient(place) for _ in beds]

    ends = await asyncio.gather(
        *(
            answer(database, stays.check_in, actor=actor, patient_id=patient.id, bed_id=bed.id)
            for patient, bed in zip(people, beds, strict=True)
        ),
        *(
            answer(database, operations.create_bed, actor=actor, room_id=room.id, details={"label": name})
            for name in ("новая", "другая")
        ),
        answer(database, availability.archive, Dispensary, actor=actor, key=place.id, version=1),
    )

    unhandled = [
        end
        for end in ends
        if isinstance(end, Refusal) and end.code not in ("HAS_OPEN_STAYS", "NOT_FOUND", "ARCHIVED")
    ]
    assert unhandled == []
    archived = await database.fetch_value("SELECT archived_at IS NOT NULL FROM dispensary")
    left = await database.fetch_value(
        "SELECT count(*) FROM bed WHERE (archived_at IS NOT NULL) <> $1", archived
    )
    in_use = await database.fetch_value("SELECT count(*) FROM bed_assignment WHERE ended_at IS NULL")
    assert left == 0
    assert not (archived and in_use)
