"""What tests of the outpatient clinic do again and again: make slots of rules, and look at them."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from ekoyka.database import Database
from ekoyka.outpatient import slots
from ekoyka.outpatient.tables import ExtraHours, Schedule, TimeOff
from tests.factories import Factory


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
