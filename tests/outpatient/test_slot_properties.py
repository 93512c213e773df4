"""Slots of made-up rules in many zones, around clock changes: checked minute by minute against the rules themselves.

The model knows clocks only by Python's own time zones: a minute of the day is worked at the last instant that shows
it, and not at all on a day that never shows it.
"""

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import WARD_ROLE, Database
from ekoyka.facilities.tables import Dispensary
from ekoyka.identity.tables import Account, RoleGrant
from ekoyka.inpatient.tables import Patient
from ekoyka.outpatient import slots
from ekoyka.outpatient.tables import Appointment, ExtraHours, Schedule, Slot, TimeOff, Timetable, WorkingHours
from ekoyka.settings import Settings
from tests.conftest import address_of, administer

MINUTE = timedelta(minutes=1)
# (zone, a day on which its clocks change, or one like any other)
PLACES = [
    ("Europe/Moscow", date(2026, 3, 29)),
    ("Asia/Vladivostok", date(2026, 10, 25)),
    ("Europe/Berlin", date(2026, 3, 29)),
    ("Europe/Berlin", date(2026, 10, 25)),
    ("America/New_York", date(2026, 3, 8)),
    ("America/New_York", date(2026, 11, 1)),
    ("Australia/Lord_Howe", date(2026, 4, 5)),
    ("Australia/Lord_Howe", date(2026, 10, 4)),
    ("Asia/Beirut", date(2026, 3, 29)),
    ("Asia/Beirut", date(2026, 10, 25)),
    ("America/Santiago", date(2026, 9, 6)),
    ("America/Santiago", date(2026, 4, 5)),
]

Span = tuple[int, int]
"""Minutes from a beginning until an end."""


@dataclass(frozen=True)
class Rules:
    """What a schedule says; ``hours`` by weekday, the rest in minutes from the first day's midnight."""

    visit: int
    horizon: int
    hours: dict[int, list[Span]]
    off: list[Span] = field(default_factory=list)
    extra: list[Span] = field(default_factory=list)


def spans(last: int, most: int) -> st.SearchStrategy[list[Span]]:
    """Spans that do not overlap, in order; they may touch."""
    return (
        st.lists(st.integers(0, last), unique=True, max_size=2 * most)
        .map(sorted)
        .map(lambda ends: list(zip(ends[::2], ends[1::2], strict=False)))
    )


def touching(found: list[Span]) -> list[Span]:
    """The second of two spans begins where the first one ends."""
    return [(found[0][0], found[1][0]), *found[1:]] if len(found) > 1 else found


def off() -> st.SearchStrategy[list[Span]]:
    return st.lists(
        st.tuples(st.integers(0, 4000), st.integers(1, 700)).map(lambda pair: (pair[0], pair[0] + pair[1])),
        max_size=4,
    )


rules = st.builds(
    Rules,
    visit=st.sampled_from([5, 7, 20, 30, 45, 60, 90]),
    horizon=st.integers(0, 2),
    hours=st.dictionaries(
        st.integers(1, 7),
        st.one_of(spans(1440, 3), spans(300, 2), spans(400, 3).map(touching)),
        min_size=5,
        max_size=7,
    ),
    off=off(),
    extra=spans(4000, 2),
)


class Model:
    """The minutes in which a rule's visits may lie, by interval, and how many visits each stretch of them holds."""

    def __init__(self, rules: Rules, zone: ZoneInfo, day: date) -> None:
        self.rules = rules
        self._zone = zone
        begin = datetime.combine(day, time(), zone).astimezone(UTC)
        self._off = {begin + minute * MINUTE for span in rules.off for minute in range(*span)}
        work = []
        for number in range(rules.horizon + 1):
            today = day + timedelta(days=number)
            work += [self._worked(today, span) for span in rules.hours.get(today.isoweekday(), [])]
        weekly = {minute for minutes in work for minute in minutes}
        end = datetime.combine(day + timedelta(days=rules.horizon + 1), time(), zone).astimezone(UTC)
        for since, until in rules.extra:
            if begin + since * MINUTE < end:
                work.append([begin + minute * MINUTE for minute in range(since, until)])
                work[-1] = [minute for minute in work[-1] if minute not in weekly]
        # Of each interval, what is left of it in one piece.
        self.stretches = [stretch for minutes in work for stretch in self._stretches(minutes)]
        self.minutes = {minute for stretch in self.stretches for minute in stretch}

    def _worked(self, day: date, span: Span) -> list[datetime]:
        found = []
        for minute in range(*span):
            reading = datetime.combine(day, time(*divmod(minute, 60)), self._zone).replace(fold=1)
            instant = reading.astimezone(UTC)
            if instant.astimezone(self._zone).replace(tzinfo=None) == reading.replace(tzinfo=None):
                found.append(instant)
        return found

    def _stretches(self, minutes: list[datetime]) -> Iterator[list[datetime]]:
        stretch: list[datetime] = []
        for minute in minutes:
            if minute in self._off:
                continue
            if stretch and minute - stretch[-1] != MINUTE:
                yield stretch
                stretch = []
            stretch.append(minute)
        if stretch:
            yield stretch


class World:
    """One schedule in one transaction, which is undone in the end."""

    def __init__(self, session: AsyncSession, zone: str, day: date) -> None:
        self.session = session
        self.zone, self.day = ZoneInfo(zone), day
        self.begin = datetime.combine(day, time(), self.zone).astimezone(UTC)
        self.now = self.begin - MINUTE

    async def _add(self, row: Any) -> Any:
        self.session.add(row)
        await self.session.flush()
        return row

    async def prepare(self) -> None:
        place = await self._add(Dispensary(name="Д", neutral_name="Б", address="А", time_zone=self.zone.key))
        doctor = await self._add(
            Account(email=f"{uuid.uuid4().hex}@example.org", name="В", password_hash="-")
        )
        await self._add(RoleGrant(account_id=doctor.id, role="DOCTOR", dispensary_id=place.id))
        self.patient = await self._add(
            Patient(dispensary_id=place.id, record_number="1", code_name="П", sex="MALE")
        )
        self.schedule = await self._add(Schedule(doctor_id=doctor.id, dispensary_id=place.id))

    def _times(self, since: int, until: int) -> dict[str, Any]:
        return {"starts_at": self.begin + since * MINUTE, "ends_at": self.begin + until * MINUTE}

    async def follow(self, rules: Rules) -> slots.Made:
        """The schedule has these rules and no others, and its slots are made; they are made from midnight on."""
        key = {"schedule_id": self.schedule.id, "dispensary_id": self.schedule.dispensary_id}
        whole: dict[str, Any] = {**key, "doctor_id": self.schedule.doctor_id}
        for table in ("timetable", "time_off", "extra_hours"):
            await self.session.execute(text(f"DELETE FROM {table} WHERE schedule_id = {self.schedule.id}"))
        # A day is begun in the middle of the one before, so that all of it lies ahead.
        self.schedule.horizon_days = rules.horizon + 1
        table = await self._add(Timetable(**key, valid_from=self.day, visit_minutes=rules.visit))
        self.session.add_all(
            WorkingHours(
                timetable_id=table.id,
                dispensary_id=key["dispensary_id"],
                weekday=weekday,
                starts_minute=since,
                ends_minute=until,
            )
            for weekday, intervals in rules.hours.items()
            for since, until in intervals
        )
        for since, until in rules.off:
            times = self._times(since, until)
            self.session.add(TimeOff(**whole, kind="OTHER", reason="-", **times))
        for since, until in rules.extra:
            times = self._times(since, until)
            self.session.add(ExtraHours(**whole, visit_minutes=rules.visit, **times))
        await self.session.flush()
        return await slots.make(self.session, [self.schedule.id], now=self.now)

    async def book(self, number: int) -> tuple[datetime, datetime] | None:
        """One of the free slots is booked; its times."""
        found = await self.session.scalars(
            text(
                "SELECT id FROM slot s WHERE withdrawn_at IS NULL "
                "AND NOT EXISTS (SELECT FROM appointment a WHERE a.slot_id = s.id) ORDER BY starts_at"
            )
        )
        free = list(found)
        if not free:
            return None
        slot = await self.session.get_one(Slot, free[number % len(free)])
        await self._add(
            Appointment(
                patient_id=self.patient.id,
                slot_id=slot.id,
                doctor_id=slot.doctor_id,
                dispensary_id=slot.dispensary_id,
                starts_at=slot.starts_at,
                ends_at=slot.ends_at,
            )
        )
        return slot.starts_at, slot.ends_at

    async def slots(self) -> list[tuple[datetime, datetime]]:
        """The slots that are not withdrawn, in order."""
        rows = await self.session.execute(
            text("SELECT starts_at, ends_at FROM slot WHERE withdrawn_at IS NULL ORDER BY starts_at")
        )
        return [(row.starts_at, row.ends_at) for row in rows]


def minutes_of(slot: tuple[datetime, datetime]) -> list[datetime]:
    return [slot[0] + number * MINUTE for number in range(int((slot[1] - slot[0]) / MINUTE))]


def check(
    model: Model, found: list[tuple[datetime, datetime]], kept: list[tuple[datetime, datetime]]
) -> None:
    """The slots never overlap, never leave the hours, never meet a break, and cover all that can be covered."""
    assert all(one[1] <= other[0] for one, other in pairwise(found)), "they overlap"
    assert set(kept) <= set(found), "one that is booked is gone"
    free = [slot for slot in found if slot not in kept]
    taken = {minute for slot in kept for minute in minutes_of(slot)}
    for slot in free:
        assert slot[1] - slot[0] == model.rules.visit * MINUTE, "one lasts otherwise"
        assert set(minutes_of(slot)) <= model.minutes, "one leaves the hours or meets a break"
    for stretch in model.stretches:
        if taken.isdisjoint(stretch):
            inside = [slot for slot in free if stretch[0] <= slot[0] <= stretch[-1]]
            assert len(inside) == len(stretch) // model.rules.visit, "one more would fit"


@pytest.fixture(scope="module")
def emptied(template: str) -> Iterator[str]:
    """The address of a migrated database that holds nothing; whoever uses it leaves nothing."""
    name = f"properties_{uuid.uuid4().hex[:12]}"
    asyncio.run(administer(f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield address_of(name)
    asyncio.run(administer(f"DROP DATABASE {name} WITH (FORCE)"))


class Undone(Exception):
    """Ends a transaction that is not to be committed."""


@settings(
    max_examples=100, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
    place=st.sampled_from(PLACES),
    before=st.integers(0, 1),
    first=rules,
    changes=st.lists(st.tuples(st.integers(0, 99), rules), max_size=2),
)
def test_slots_keep_to_the_rules_whatever_they_are_and_become(
    emptied: str, place: tuple[str, date], before: int, first: Rules, changes: list[tuple[int, Rules]]
) -> None:
    async def example() -> None:
        zone, day = place
        async with (
            Database(emptied, Settings(), pooled=False, role=WARD_ROLE) as database,
            database.transaction() as session,
        ):
            world = World(session, zone, day - timedelta(days=before))
            await world.prepare()
            await world.follow(first)
            check(Model(first, world.zone, world.day), await world.slots(), [])
            kept: list[tuple[datetime, datetime]] = []
            for number, changed in changes:
                booked = await world.book(number)
                kept += [booked] if booked else []
                await world.follow(changed)
                check(Model(changed, world.zone, world.day), await world.slots(), kept)
                again = await slots.make(session, [world.schedule.id], now=world.now)
                assert again == slots.Made(0, 0), "made again, it is otherwise"
            raise Undone

    with pytest.raises(Undone):
        asyncio.run(example())
