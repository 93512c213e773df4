"""Calendar files: where they are, and the route that serves them to whoever has a signed address."""

from __future__ import annotations

from datetime import date
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ekoyka import links
from ekoyka.api.context import Services
from ekoyka.api.endpoint import language_of
from ekoyka.api.oauth import SECURITY_HEADERS
from ekoyka.api.permissions import CLINICAL
from ekoyka.database import DatabaseUnavailable
from ekoyka.graph import declare as graph
from ekoyka.outpatient.calendars import OF_APPOINTMENT, OF_DAY, Visit, calendar_file


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


async def calendar(request: Request) -> Response:
    """An appointment or a doctor's day as it is now, for whoever has its short-lived address."""
    services: Services = request.app.state.services
    subject = links.read(services.download_keys, request.path_params["name"])
    if subject is None or subject.isdigit():
        return PlainTextResponse(
            "Адрес недействителен или устарел: запросите новый.\n"
            "The address is not good (any more): ask for a new one.",
            403,
            SECURITY_HEADERS,
        )
    try:
        if subject.startswith("a"):
            rows = await services.database.fetch(OF_APPOINTMENT, int(subject[1:]))
        else:
            schedule, _, day = subject[1:].partition(".")
            rows = await services.database.fetch(
                OF_DAY, int(schedule), date(int(day[:4]), int(day[4:6]), int(day[6:]))
            )
    except DatabaseUnavailable:
        return PlainTextResponse(
            "Сейчас не получилось: повторите через несколько секунд.\n"
            "Not possible right now: try again in a few seconds.",
            503,
            {**SECURITY_HEADERS, "retry-after": "3"},
        )
    if not rows and subject.startswith("a"):
        return PlainTextResponse("Записи нет.\nThere is no such appointment.", 404, SECURITY_HEADERS)
    file = calendar_file(
        (Visit(**row) for row in rows),
        language=language_of(request),
        host=urlsplit(services.settings.base_url).hostname or "localhost",
    )
    return Response(
        file,
        200,
        {**SECURITY_HEADERS, "content-disposition": 'attachment; filename="visit.ics"'},
        "text/calendar; charset=utf-8",
    )
