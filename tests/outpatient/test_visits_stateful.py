"""Booking, moving, cancelling, holding and leaves in any order, against a model that is a few dictionaries."""

import asyncio
import itertools
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ekoyka.database import WARD_ROLE, Database
from ekoyka.errors import Refusal
from ekoyka.outpatient import appointments, leave
from ekoyka.outpatient.facts import Policy
from ekoyka.outpatient.queries import is_free
from ekoyka.outpatient.tables import TimeOffKind
from ekoyka.settings import Settings
from tests.conftest import address_of, administer
from tests.factories import Factory
from tests.identity.transactions import answer, run
from tests.invariants import broken_invariants
from tests.outpatient.clinic import made, patient_of

DOCTORS, TIMES, PATIENTS, MOST = 2, 6, 3, 2
POLICY = Policy(most_open=MOST, cancel_before_s=60, hold_s=600, offer_s=600)
Place = tuple[int, int]
"""A doctor and one of the times: a slot."""

# Of the first row of each clinic, which all share a database.
_NUMBERS = itertools.count(1, 1000)
doctors = st.integers(0, DOCTORS - 1)
times = st.integers(0, TIMES - 1)
people = st.integers(0, PATIENTS - 1)


class Clinic(RuleBasedStateMachine):
    """One clinic; ``url`` is where its rows are."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.database = Database(self.url, Settings(), pooled=False, role=WARD_ROLE)
        # The model: who has which slot, who holds which, when each doctor is away.
        self.booked: dict[int, tuple[int, Place]] = {}
        self.held: dict[int, Place] = {}
        self.away: dict[int, tuple[int, int, int]] = {}

    @initialize()
    def open(self) -> None:
        async def prepare() -> None:
            make = Factory(self.database, first=next(_NUMBERS))
            place = await make.dispensary(time_zone="UTC")
            self.begin = datetime.now(UTC).replace(hour=10, minute=0, second=0, microsecond=0) + timedelta(
                days=2
            )
            hours = {day: [(600, 720)] for day in range(1, 8)}
            actors = [await make.actor(doctor_of=(place,)) for _ in range(DOCTORS)]
            self.doctor = actors[0]
            self.schedules = [await make.schedule(actor, place, hours, visit_minutes=20) for actor in actors]
            await made(self.database, *self.schedules)
            self.people = [(await patient_of(make, place))[1] for _ in range(PATIENTS)]

        self.runner.run(prepare())

    def teardown(self) -> None:
        async def close() -> None:
            assert await broken_invariants(self.database) == []
            await self.database.close()

        self.runner.run(close())
        self.runner.close()

    # What the model says

    def _at(self, number: int) -> datetime:
        return self.begin + timedelta(minutes=20 * number)

    def _off(self, place: Place) -> bool:
        return any(
            doctor == place[0] and since <= place[1] < until for doctor, since, until in self.away.values()
        )

    def _taken(self, place: Place) -> bool:
        return place in {taken for _, taken in self.booked.values()}

    def _of(self, person: int) -> list[int]:
        return [key for key, (who, _) in self.booked.items() if who == person]

    def _no_slot(self, place: Place, person: int | None) -> str | None:
        """Why the slot cannot be had, if so."""
        if self._off(place):
            return "DOCTOR_ON_LEAVE"
        holders = {who for who, held in self.held.items() if held == place}
        if self._taken(place) or holders - {person}:
            return "SLOT_TAKEN"
        return None

    def _clash(self, place: Place, person: int, but: int | None = None) -> bool:
        return any(self.booked[key][1][1] == place[1] for key in self._of(person) if key != but)

    # What the clinic does

    def _do(self, verb: Any, **arguments: Any) -> Any:
        return self.runner.run(answer(self.database, verb, policy=POLICY, **arguments))

    def _slot(self, place: Place) -> int:
        """The slot of this time, or the last one that there was."""
        key: int = self.runner.run(
            self.database.fetch_value(
                "SELECT id FROM slot WHERE schedule_id = $1 AND starts_at = $2 "
                "ORDER BY withdrawn_at IS NULL DESC, id DESC LIMIT 1",
                self.schedules[place[0]].id,
                self._at(place[1]),
            )
        )
        return key

    def _compare(self, end: Any, expected: str | None) -> None:
        said = end.code if isinstance(end, Refusal) else None
        assert said == expected, f"{said} where {expected} was expected"

    @rule(person=people, doctor=doctors, time=times)
    def book(self, person: int, doctor: int, time: int) -> None:
        place = (doctor, time)
        expected = self._no_slot(place, person)
        if expected is None and self._clash(place, person):
            expected = "PATIENT_ALREADY_BOOKED"
        if expected is None and len(self._of(person)) >= MOST:
            expected = "TOO_MANY_APPOINTMENTS"
        end = self._do(appointments.book, actor=self.people[person], slot_id=self._slot(place))
        self._compare(end, expected)
        if expected is None:
            self.booked[end.id] = (person, place)
            if self.held.get(person) == place:
                del self.held[person]

    @precondition(lambda self: self.booked)
    @rule(data=st.data(), doctor=doctors, time=times)
    def move(self, data: st.DataObject, doctor: int, time: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.booked)))
        person, former = self.booked[key]
        place = (doctor, time)
        expected = "SAME_SLOT" if place == former else self._no_slot(place, person)
        if expected is None and self._clash(place, person, but=key):
            expected = "PATIENT_ALREADY_BOOKED"
        end = self._do(
            appointments.move,
            actor=self.people[person],
            appointment_id=key,
            version=self._version(key),
            slot_id=self._slot(place),
        )
        self._compare(end, expected)
        if expected is None:
            self.booked[key] = (person, place)
            if self.held.get(person) == place:
                del self.held[person]

    def _version(self, key: int) -> int:
        version: int = self.runner.run(
            self.database.fetch_value("SELECT version FROM appointment WHERE id = $1", key)
        )
        return version

    @precondition(lambda self: self.booked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.booked)))
        person, _ = self.booked.pop(key)
        end = self._do(
            appointments.cancel,
            actor=self.people[person],
            appointment_id=key,
            version=self._version(key),
            reason=None,
        )
        self._compare(end, None)

    @rule(person=people, doctor=doctors, time=times)
    def hold(self, person: int, doctor: int, time: int) -> None:
        place = (doctor, time)
        expected = self._no_slot(place, person)
        self._compare(
            self._do(appointments.hold, actor=self.people[person], slot_id=self._slot(place)), expected
        )
        if expected is None:
            self.held[person] = place

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        person = data.draw(st.sampled_from(sorted(self.held)))
        place = self.held.pop(person)
        slot = self.runner.run(
            self.database.fetch_value(
                "SELECT slot_id FROM slot_hold WHERE account_id = $1", self.people[person].account_id
            )
        )
        assert slot is not None, place
        self._compare(self._do(appointments.release, actor=self.people[person], slot_id=slot), None)

    @rule(doctor=doctors, since=times, length=st.integers(1, 3))
    def leave(self, doctor: int, since: int, length: int) -> None:
        row = self.runner.run(
            run(
                self.database,
                leave.add_time_off,
                actor=self.doctor,
                schedule_id=self.schedules[doctor].id,
                kind=TimeOffKind.LEAVE,
                reason="отпуск",
                starts_at=self._at(since),
                ends_at=self._at(since + length),
            )
        )
        self.away[row.id] = (doctor, since, since + length)

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.away)))
        del self.away[key]
        self.runner.run(run(self.database, leave.remove_time_off, actor=self.doctor, time_off_id=key))

    @invariant()
    def what_is_free_is_what_nobody_has(self) -> None:
        if not hasattr(self, "people"):
            return
        rows = self.runner.run(
            self.database.fetch(
                f"SELECT s.schedule_id, s.starts_at FROM slot s WHERE s.schedule_id = ANY($1) AND {is_free('s')} "
                "AND s.starts_at >= $2 AND s.starts_at < $3",
                [schedule.id for schedule in self.schedules],
                self.begin,
                self._at(TIMES),
            )
        )
        numbers = {schedule.id: number for number, schedule in enumerate(self.schedules)}
        found = {
            (numbers[row["schedule_id"]], int((row["starts_at"] - self.begin) / timedelta(minutes=20)))
            for row in rows
        }
        everything = {(doctor, time) for doctor in range(DOCTORS) for time in range(TIMES)}
        held = set(self.held.values())
        assert found == {
            place for place in everything if not (self._taken(place) or place in held or self._off(place))
        }


@pytest.fixture
def url(template: str) -> Iterator[str]:
    """The address of a database for all of the clinics."""
    name = f"stateful_{uuid.uuid4().hex[:12]}"
    asyncio.run(administer(f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield address_of(name)
    asyncio.run(administer(f"DROP DATABASE {name} WITH (FORCE)"))


def test_a_clinic_does_what_the_model_says(url: str) -> None:
    Clinic.url = url
    run_state_machine_as_test(
        Clinic,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
