"""Statistics of visits in the graph: each is one statement, grouped in the dispensaries' own days."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ekoyka.api.permissions import CLINICAL
from ekoyka.graph import declare as graph
from ekoyka.outpatient.tables import LIVE

if TYPE_CHECKING:
    from ekoyka.api.scalars import Date

MOST_DAYS = 366
_PERIOD = {
    "from_": graph.Arg(type="Date", pg="date", description="The first day of the period."),
    "until": graph.Arg(
        type="Date",
        pg="date",
        description=f"The last day of the period; days beyond {MOST_DAYS} are left out.",
    ),
    "doctor_id": graph.key("Account", "Only of this doctor, by their account's id.", required=False),
    "dispensary_id": graph.key("Dispensary", "Only in this dispensary.", required=False),
}
_STATUS = graph.Arg(
    type="list[AppointmentStatus] | None",
    pg="text[]",
    description="Only appointments in one of these statuses.",
)


def _last(names: graph.Names) -> str:
    return f"least({names.arg('until')}, {names.arg('from_')} + {MOST_DAYS - 1})"


def _within(row: str, zone: str, names: graph.Names) -> str:
    """SQL of whether a row that begins, in a dispensary of this zone, lies in the period, and is of whom was asked for.

    The first comparison, which no zone can make wrong, is one for an index.
    """
    day = f"({row}.starts_at AT TIME ZONE {zone})::date"
    doctor, place = names.arg("doctor_id"), names.arg("dispensary_id")
    return (
        f"{row}.starts_at >= {names.arg('from_')}::timestamp AT TIME ZONE 'UTC' - interval '1 day' "
        f"AND {row}.starts_at < {_last(names)}::timestamp AT TIME ZONE 'UTC' + interval '2 days' "
        f"AND {day} >= {names.arg('from_')} AND {day} <= {_last(names)} "
        f"AND ({doctor} IS NULL OR {row}.doctor_id = {doctor}) "
        f"AND ({place} IS NULL OR {row}.dispensary_id = {place})"
    )


def _appointments(names: graph.Names, columns: str, more: str = "true") -> str:
    """A SELECT of the period's appointments that the actor may see as a clinician."""
    return (
        f"SELECT {columns} FROM appointment a JOIN dispensary d ON d.id = a.dispensary_id "
        "JOIN slot s ON s.id = a.slot_id JOIN schedule c ON c.id = s.schedule_id "
        f"WHERE {_within('a', 'd.time_zone', names)} AND {names.scope('Schedule', 'c')} AND {more}"
    )


def _per_day(row: str, names: graph.Names) -> str:
    status = names.arg("status")
    found = _appointments(
        names,
        "(a.starts_at AT TIME ZONE d.time_zone)::date AS day",
        f"({status} IS NULL OR a.status = ANY({status}))",
    )
    return (
        "(SELECT g.at::date AS day, count(f.day)::int AS count "
        f"FROM generate_series({names.arg('from_')}::timestamp, {_last(names)}::timestamp, interval '1 day') g (at) "
        f"LEFT JOIN ({found}) f ON f.day = g.at::date GROUP BY g.at)"
    )


def _rate(part: str, whole: str) -> str:
    return f"({part})::float8 / nullif({whole}, 0)"


def _utilisation(row: str, names: graph.Names) -> str:
    taken = "count(*) FILTER (WHERE s.taken)"
    return (
        f"(SELECT count(*)::int AS slots, {taken}::int AS taken, {_rate(taken, 'count(*)')} AS rate "
        "FROM slot s JOIN schedule c ON c.id = s.schedule_id JOIN dispensary d ON d.id = s.dispensary_id "
        f"WHERE s.withdrawn_at IS NULL AND {_within('s', 'd.time_zone', names)} AND {names.scope('Schedule', 'c')})"
    )


def _no_shows(row: str, names: graph.Names) -> str:
    missed = "count(*) FILTER (WHERE f.status = 'NOSHOW')"
    found = _appointments(names, "a.status", "a.status IN ('FULFILLED', 'NOSHOW')")
    return (
        f"(SELECT count(*)::int AS visits, {missed}::int AS no_shows, {_rate(missed, 'count(*)')} AS rate "
        f"FROM ({found}) f)"
    )


def _waiting(row: str, names: graph.Names) -> str:
    days = (
        "(a.starts_at AT TIME ZONE d.time_zone)::date - (a.booked_at AT TIME ZONE d.time_zone)::date AS days"
    )
    return (
        "(SELECT count(*)::int AS visits, avg(f.days)::float8 AS average_days, "
        "percentile_cont(0.5) WITHIN GROUP (ORDER BY f.days) AS median_days, max(f.days) AS longest_days "
        f"FROM ({_appointments(names, days, LIVE.format(row='a.'))}) f)"
    )


@graph.type_(description="How many appointments there are on a day.")
class DayCount:
    """A day."""

    day: Date = graph.column("The day, on the clocks of each appointment's dispensary.")
    count: int = graph.column("How many appointments begin on it.")


@graph.type_(description="How many of the slots were used.")
class SlotUtilisation:
    """Utilisation."""

    slots: int = graph.column("How many slots there are in the period, without those that were withdrawn.")
    taken: int = graph.column("How many of them an appointment holds.")
    rate: float | None = graph.column("The part that is taken, 0 to 1; null where there are no slots.")


@graph.type_(description="How many visits were missed.")
class NoShowRate:
    """Missed visits."""

    visits: int = graph.column("How many visits took place or were missed.")
    no_shows: int = graph.column("How many were missed.")
    rate: float | None = graph.column("The part that was missed, 0 to 1; null where there were none.")


@graph.type_(description="How long patients wait for a visit, in days from the booking's to the visit's.")
class WaitingTime:
    """Waiting times."""

    visits: int = graph.column("How many appointments that were not cancelled there are in the period.")
    average_days: float | None = graph.column("The average.")
    median_days: float | None = graph.column("The median.")
    longest_days: int | None = graph.column("The longest.")


class Queries:
    """Root fields about how many visits there are."""

    appointments_per_day: list[DayCount] = graph.listing(
        lambda row, child, names: "true",
        "How many appointments there are on each day of a period, days with none included.",
        source=_per_day,
        order=lambda row, child: f"{child}.day",
        args={**_PERIOD, "status": _STATUS},
        roles=CLINICAL,
    )
    slot_utilisation: SlotUtilisation = graph.one(
        lambda row, child, names: "true",
        "How many of a period's slots are taken.",
        source=_utilisation,
        args=_PERIOD,
        roles=CLINICAL,
    )
    no_show_rate: NoShowRate = graph.one(
        lambda row, child, names: "true",
        "How many of a period's visits were missed.",
        source=_no_shows,
        args=_PERIOD,
        roles=CLINICAL,
    )
    waiting_time: WaitingTime = graph.one(
        lambda row, child, names: "true",
        "How long patients wait for the visits of a period.",
        source=_waiting,
        args=_PERIOD,
        roles=CLINICAL,
    )
