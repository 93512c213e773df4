"""The scalars: each says what it holds and refuses what it cannot."""

import re
from datetime import UTC, date, datetime
from typing import Any, NewType

import strawberry
from graphql import GraphQLError
from strawberry.types.scalar import ScalarDefinition

from ekoyka.columns import phone_number
from ekoyka.graph import declare as graph

ID = strawberry.ID
DateTime = NewType("DateTime", datetime)
Date = NewType("Date", date)
Phone = NewType("Phone", str)
Time = NewType("Time", int)
TimeZone = NewType("TimeZone", str)


def _bad(message: str) -> GraphQLError:
    return GraphQLError(message, extensions={"code": "BAD_USER_INPUT"})


def _date_time(value: Any) -> datetime:
    try:
        instant = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _bad("A DateTime is ISO 8601 with an offset, such as 2026-03-03T08:30:00+03:00.") from None
    if instant.tzinfo is None:
        raise _bad("A DateTime needs an offset, such as 2026-03-03T08:30:00+03:00 or …Z.")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise _bad("This DateTime is out of range.") from None


def _date(value: Any) -> date:
    try:
        if not isinstance(value, str) or len(value) != 10:
            raise ValueError
        return date.fromisoformat(value)
    except ValueError:
        raise _bad("A Date is an existing day as YYYY-MM-DD, such as 2026-03-03.") from None


def _phone(value: Any) -> str:
    try:
        return phone_number(value if isinstance(value, str) else "")
    except ValueError:
        raise _bad("A Phone is a possible number in E.164 form, such as +74950000000.") from None


def _time_zone(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 100:
        raise _bad("A TimeZone is an IANA name, such as Europe/Moscow.")
    return value


_CLOCK = re.compile(r"([01]\d|2[0-4]):([0-5]\d)")


def _time(value: Any) -> int:
    found = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    minutes = int(found[1]) * 60 + int(found[2]) if found else 24 * 60 + 1
    if minutes > 24 * 60:
        raise _bad("A Time is HH:MM from 00:00 to 24:00, such as 09:30.")
    return minutes


def _as_is(value: Any) -> Any:
    # Rows come as JSON: PostgreSQL has written the value already.
    return value if isinstance(value, str) else value.isoformat()


SCALARS: dict[object, ScalarDefinition] = {
    DateTime: strawberry.scalar(
        name="DateTime",
        description="An instant: ISO 8601 with an offset. Answers are in UTC, to the microsecond.",
        specified_by_url="https://www.rfc-editor.org/rfc/rfc3339",
        serialize=_as_is,
        parse_value=_date_time,
    ),
    Date: strawberry.scalar(
        name="Date",
        description="A day of the calendar, YYYY-MM-DD, in the dispensary's own time zone.",
        serialize=_as_is,
        parse_value=_date,
    ),
    Phone: strawberry.scalar(
        name="Phone", description="A phone number in E.164 form.", serialize=_as_is, parse_value=_phone
    ),
    Time: strawberry.scalar(
        name="Time",
        description="A time of the day on the dispensary's clocks, HH:MM; 24:00 is the end of the day.",
        serialize=_as_is,
        parse_value=_time,
    ),
    TimeZone: strawberry.scalar(
        name="TimeZone", description="An IANA time zone's name.", serialize=_as_is, parse_value=_time_zone
    ),
}

for _name, _type in {
    "DateTime": DateTime,
    "Date": Date,
    "Phone": Phone,
    "Time": Time,
    "TimeZone": TimeZone,
}.items():
    graph.scalar(_name, _type)
