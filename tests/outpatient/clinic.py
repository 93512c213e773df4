"""What tests of the outpatient clinic do again and again: make slots of rules, book them, and look at it all."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from ekoyka.database import Database
from ekoyka.facilities.tables import Dispensary
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Account
from ekoyka.inpatient.tables import Patient
from ekoyka.outpatient import appointments, slots
from ekoyka.outpatient.facts import Policy
from ekoyka.outpatient.tables import (
    Appointment,
    ExtraHours,
    Notification,
    Schedule,
    Slot,
    SlotOffer,
    TimeOff,
    WaitingEntry,
)
from tests.factories import Factory
from tests.identity.transactions import run

POLICY = Policy(most_open=3, cancel_before_s=3600, hold_s=300, offer_s=600)


@dataclass(frozen=True)
class Clinic:
    """A doctor with a few free slots from tomorrow noon on, and a patient with an account."""

    place: Dispensary
    doctor: Actor
    schedule: Schedule
    slots: list[Slot]
    patient: Patient
    person: Actor


async def clinic(make: Factory, count: int = 4, place: Dispensary | None = None) -> Clinic:
    place = place or await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    schedule = await make.schedule(doctor, place, {})
    # They keep what tests ask about apart from what the hours would give.
    found = [await make.slot(schedule, noon(20 * number)) for number in range(count)]
    patient, person = await patient_of(make, place)
    return Clinic(place, doctor, schedule, found, patient, person)


def noon(minutes: int = 0) -> datetime:
    """So many minutes after tomorrow's noon."""
    return datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) + timedelta(
        days=1, minutes=minutes
    )


async def patient_of(make: Factory, place: Dispensary) -> tuple[Patient, Actor]:
    """A patient of the dispensary, and their account."""
    person = await make.actor()
    return await make.patient(place, account_id=person.account_id), person


async def booked(database: Database, here: Clinic, number: int = 0, **more: Any) -> int:
    """The clinic's patient has this slot; the appointment's key."""
    row = await run(
        database,
        appointments.book,
        **{"actor": here.person, "slot_id": here.slots[number].id, "policy": POLICY, **more},
    )
    key: int = row.id
    return key


async def told(database: Database, actor: Actor) -> list[str]:
    """What the actor has been notified of, first to last."""
    rows = await database.fetch(
        "SELECT kind FROM notification WHERE account_id = $1 ORDER BY id", actor.account_id
    )
    return [row["kind"] for row in rows]


async def heard(database: Database, topic: str) -> list[str]:
    """The changes that a topic tells of, in order; of notifications their kind of event alone."""
    rows = await database.fetch(
        "SELECT coalesce(payload->>'change', 'notification') AS change FROM feed_event "
        "WHERE topic = $1 ORDER BY cursor",
        topic,
    )
    return [row["change"] for row in rows]


async def status_of(database: Database, appointment_id: int) -> str:
    status: str = await database.fetch_value("SELECT status FROM appointment WHERE id = $1", appointment_id)
    return status


async def made(database: Database, *schedules: Schedule, now: datetime | None = None) -> slots.Made:
    """The schedules' slots are what their rules give at that moment."""
    async with database.transaction() as session:
        return await slots.make(session, [schedule.id for schedule in schedules], now=now)


async def slots_of(database: Database, schedule: Schedule) -> list[tuple[datetime, datetime]]:
    """The schedule's slots that are not withdrawn, in order."""
    rows = await database.fetch(
        "SELECT starts_at, ends_at FROM slot WHERE schedule_id = $1 AND withdrawn_at IS NULL ORDER BY starts_at",
        schedule.id,
    )
    return [(row["starts_at"], row["ends_at"]) for row in rows]


async def read_on_clock(database: Database, schedule: Schedule, zone: str) -> list[str]:
    """When the schedule's slots begin, as the zone's clocks show it."""
    return [
        f"{starts.astimezone(ZoneInfo(zone)):%m-%d %H:%M}" for starts, _ in await slots_of(database, schedule)
    ]


def at(text: str, zone: str = "UTC") -> datetime:
    """An instant, as a zone's clocks show it."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


async def off(make: Factory, schedule: Schedule, starts_at: datetime, ends_at: datetime) -> TimeOff:
    """The doctor sees nobody then."""
    return await make.keep(
        TimeOff(**_of(schedule), kind="LEAVE", reason="отпуск", starts_at=starts_at, ends_at=ends_at)
    )


async def extra(
    make: Factory, schedule: Schedule, starts_at: datetime, ends_at: datetime, **more: Any
) -> ExtraHours:
    """The doctor sees patients then, too."""
    return await make.keep(ExtraHours(**_of(schedule), starts_at=starts_at, ends_at=ends_at, **more))


def _of(schedule: Schedule) -> dict[str, Any]:
    return {
        "schedule_id": schedule.id,
        "doctor_id": schedule.doctor_id,
        "dispensary_id": schedule.dispensary_id,
    }


async def one_of_each(
    make: Factory, place: Dispensary, doctor: Actor | Account, patient: Patient, word: str
) -> dict[str, int]:
    """A row of every kind, by its kind; their texts are the word. The slot is free, and the offer can be answered."""
    schedule = await make.schedule(doctor, place, {1: [(540, 600)]})
    timetable = await make.database.fetch_value(
        "SELECT id FROM timetable WHERE schedule_id = $1", schedule.id
    )
    free, taken, freed = [await make.slot(schedule, noon(60 * 24 * 9 + 20 * number)) for number in range(3)]
    await make.database.fetch("UPDATE slot SET freed_at = now() WHERE id = $1", freed.id)
    appointment = await make.keep(
        Appointment(
            patient_id=patient.id,
            slot_id=taken.id,
            doctor_id=taken.doctor_id,
            dispensary_id=place.id,
            starts_at=taken.starts_at,
            ends_at=taken.ends_at,
            reason=word,
        )
    )
    entry = await make.keep(WaitingEntry(dispensary_id=place.id, patient_id=patient.id))
    offer = await make.keep(
        SlotOffer(
            entry_id=entry.id,
            slot_id=freed.id,
            dispensary_id=place.id,
            patient_id=patient.id,
            until=noon(60 * 24),
        )
    )
    account_id = patient.account_id or (await make.account()).id
    notification = await notify(make, appointment.id, place, account_id)
    time_off = await make.keep(
        TimeOff(
            **_of(schedule),
            kind="LEAVE",
            reason=word,
            starts_at=noon(60 * 24 * 20),
            ends_at=noon(60 * 24 * 21),
        )
    )
    hours = await extra(make, schedule, noon(60 * 24 * 22), noon(60 * 24 * 22 + 60), visit_minutes=20)
    return {
        "Schedule": schedule.id,
        "Timetable": timetable,
        "TimeOff": time_off.id,
        "ExtraHours": hours.id,
        "Slot": free.id,
        "Appointment": appointment.id,
        "WaitingEntry": entry.id,
        "Offer": offer.id,
        "Notification": notification,
    }


async def notify(make: Factory, appointment_id: int, place: Dispensary, account_id: int) -> int:
    """The account is told of the appointment's booking; the notification's key."""
    row = await make.keep(
        Notification(
            account_id=account_id,
            dispensary_id=place.id,
            kind="BOOKED",
            appointment_id=appointment_id,
            occasion=1,
        )
    )
    return row.id
