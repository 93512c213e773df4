"""Calendar files in the graph: their signed addresses."""

from __future__ import annotations

from ekoyka import links
from ekoyka.api.permissions import CLINICAL
from ekoyka.graph import declare as graph


def address(subject: str, names: graph.Names) -> str:
    """SQL of a calendar file's signed address, given SQL of its subject."""
    signed = links.name_sql(
        subject, names.actor("download_ttl_s"), names.actor("pad_in"), names.actor("pad_out")
    )
    return f"{names.actor('base_url')} || '/calendars/' || {signed} || '.ics'"


@graph.type_(description="Where a calendar file can be fetched.")
class CalendarLink:
    """An address."""

    url: str = graph.column("Good for the next minutes, for whoever has the address.")


class Queries:
    """Root fields about calendars."""

    day_calendar: CalendarLink | None = graph.one(
        lambda row, child, names: "true",
        "A doctor's day as a calendar file (iCalendar, RFC 5545): its visits, without the patients' names.",
        source=lambda row, names: (
            f"(SELECT {address(_day(names), names)} AS url FROM schedule c "
            f"WHERE c.id = {names.arg('schedule_id')} AND {names.scope('Schedule', 'c')})"
        ),
        args={
            "schedule_id": graph.key("Schedule", "Of which schedule."),
            "day": graph.Arg(type="Date", pg="date", description="Which day, on the dispensary's clocks."),
        },
        roles=CLINICAL,
    )


def _day(names: graph.Names) -> str:
    return f"('d' || c.id || '.' || to_char({names.arg('day')}, 'YYYYMMDD'))"
