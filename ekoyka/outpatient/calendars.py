"""Calendar files (iCalendar, RFC 5545): an appointment, or a doctor's day.

They name neither the patient nor what the place treats: calendars are copied to telephones and to strangers' servers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from ekoyka.database import Statement
from ekoyka.identity import access_log
from ekoyka.outpatient.tables import AppointmentStatus

_SUMMARY = {"ru": "Приём", "en": "Visit"}
_GONE = (AppointmentStatus.CANCELLED, AppointmentStatus.ENTERED_IN_ERROR)


def _visits(where: str) -> Statement:
    """What a calendar file says of appointments, and the entries of that in the access log."""
    return Statement(
        f"""
        WITH visit AS MATERIALIZED (
            SELECT a.id, a.patient_id, a.dispensary_id, a.starts_at, a.ends_at, a.status, a.version,
                d.neutral_name, d.address
            FROM appointment a JOIN dispensary d ON d.id = a.dispensary_id
            JOIN slot s ON s.id = a.slot_id WHERE {where}
        ), logged AS ({access_log.entry("calendar_download", "Appointment", "visit")})
        SELECT id, starts_at, ends_at, status, version, neutral_name, address FROM visit ORDER BY starts_at, id
        """
    )


OF_APPOINTMENT = _visits("a.id = :id")
OF_DAY = _visits(
    """
    s.schedule_id = :id AND a.status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR')
        AND a.starts_at >= CAST(CAST(:day AS date) AS timestamp) AT TIME ZONE d.time_zone
        AND a.starts_at < CAST(CAST(:day AS date) + 1 AS timestamp) AT TIME ZONE d.time_zone
    """
)


@dataclass(frozen=True, slots=True)
class Visit:
    """What a calendar is told of an appointment."""

    id: int
    starts_at: datetime
    ends_at: datetime
    status: str
    version: int
    neutral_name: str
    address: str


def calendar_file(visits: Iterable[Visit], *, language: str, host: str) -> bytes:
    """The visits as a calendar; a cancelled one tells that it is. ``host`` makes their ids unique in the world."""
    # 4 MiB, which a server that nobody asks for a calendar does without.
    from icalendar import Calendar, Event

    made = Calendar()
    made.add("prodid", "-//EKoyka//outpatient//RU")
    made.add("version", "2.0")
    made.add("method", "PUBLISH")
    for visit in visits:
        event = Event()
        event.add("uid", f"appointment-{visit.id}@{host}")
        event.add("dtstamp", datetime.now(UTC).replace(microsecond=0))
        event.add("dtstart", visit.starts_at.astimezone(UTC))
        event.add("dtend", visit.ends_at.astimezone(UTC))
        event.add("summary", _SUMMARY[language])
        event.add("location", f"{visit.neutral_name}, {visit.address}")
        event.add("status", "CANCELLED" if visit.status in _GONE else "CONFIRMED")
        event.add("sequence", visit.version)
        event.add("class", "PRIVATE")
        made.add_component(event)
    return bytes(made.to_ical())
