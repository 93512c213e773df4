"""Calendar files, read by another library than the one that writes them: an appointment and a doctor's day."""

import time
from datetime import timedelta

from ical.calendar_stream import IcsCalendarStream
from ical.event import Event

from ekoyka import links
from ekoyka.database import Database
from tests.client import Client, gid
from tests.factories import Factory
from tests.outpatient.clinic import at, booked, clinic, noon, patient_of

URL = "query ($id: ID!) { appointment(id: $id) { calendarUrl version } }"
DAY = "query ($id: ID!, $day: Date!) { dayCalendar(scheduleId: $id, day: $day) { url } }"


async def fetched(client: Client, url: str, language: str = "ru") -> tuple[bytes, list[Event]]:
    """The file, and its events."""
    answer = await client.http.get(
        "/calendars/" + url.rpartition("/")[2], headers={"accept-language": language}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/calendar; charset=utf-8"
    parsed = IcsCalendarStream.calendar_from_ics(answer.content.decode())
    assert (parsed.version, parsed.method, bool(parsed.prodid)) == ("2.0", "PUBLISH", True)
    return answer.content, list(parsed.events)


async def test_an_appointment_is_an_event_that_names_nobody(
    client: Client, database: Database, make: Factory
) -> None:
    place = await make.dispensary(
        name="Наркологический диспансер",
        neutral_name="Медицинский центр; «Роща», корпус 2",
        address="Лесная, 5",
    )
    here = await clinic(make, place=place)
    key = await booked(database, here, 1, reason="запой")

    link = (await client.data(URL, here.person, id=gid("Appointment", key)))["appointment"]["calendarUrl"]
    raw, [event] = await fetched(client, link)

    assert (event.dtstart, event.dtend) == (here.slots[1].starts_at, here.slots[1].ends_at)
    assert event.summary == "Приём"
    assert event.location == "Медицинский центр; «Роща», корпус 2, Лесная, 5"
    assert (event.status, event.sequence, event.classification) == ("CONFIRMED", 1, "PRIVATE")
    assert event.uid == f"appointment-{key}@127.0.0.1"
    for secret in ("запой", "арколог", here.patient.family_name or ""):
        assert secret not in raw.decode()
    # RFC 5545, 3.1: lines end with CRLF and hold at most 75 octets.
    assert raw.endswith(b"END:VCALENDAR\r\n")
    assert max(len(line) for line in raw.split(b"\r\n")) <= 75
    _, [english] = await fetched(client, link, "en")
    assert english.summary == "Visit"


async def test_a_cancelled_appointment_says_so_and_comes_after_its_former_versions(
    client: Client, database: Database, make: Factory
) -> None:
    here = await clinic(make)
    key = await booked(database, here)
    await client.mutate("appointmentCancel", "", {"id": gid("Appointment", key), "version": 1}, here.person)

    link = (await client.data(URL, here.person, id=gid("Appointment", key)))["appointment"]["calendarUrl"]
    _, [event] = await fetched(client, link)

    assert (event.status, event.sequence) == ("CANCELLED", 2)


async def test_a_doctors_day_holds_the_visits_of_the_dispensarys_own_day(
    client: Client, database: Database, make: Factory
) -> None:
    place = await make.dispensary(time_zone="Asia/Vladivostok")
    here = await clinic(make, 0, place)
    day = noon(60 * 24).date()
    # The day begins at 14:00 UTC of the day before.
    midnight = at(f"{day} 00:00", "Asia/Vladivostok")
    kept = []
    for hours in (-1, 0, 23, 24):
        slot = await make.slot(here.schedule, midnight + timedelta(hours=hours))
        here.slots.append(slot)
        kept.append(await booked(database, here, -1, actor=(await patient_of(make, place))[1]))
    gone = await make.slot(here.schedule, midnight + timedelta(hours=5))
    here.slots.append(gone)
    cancelled = await booked(database, here, -1)
    await client.mutate(
        "appointmentCancel", "", {"id": gid("Appointment", cancelled), "version": 1}, here.person
    )

    found = await client.data(DAY, here.doctor, id=gid("Schedule", here.schedule), day=day.isoformat())
    _, events = await fetched(client, found["dayCalendar"]["url"])
    empty = await client.data(DAY, here.doctor, id=gid("Schedule", here.schedule), day="2020-01-01")
    _, none = await fetched(client, empty["dayCalendar"]["url"])

    shown = await database.fetch(
        "SELECT object_id, role FROM access_entry WHERE action = 'calendar_download' ORDER BY object_id"
    )
    assert [(row["object_id"], row["role"]) for row in shown] == [(key, None) for key in kept[1:3]]
    assert [event.uid.split("@")[0] for event in events] == [f"appointment-{key}" for key in kept[1:3]]
    assert none == []


async def test_an_address_that_is_forged_lapsed_or_anothers_gives_nothing(
    client: Client, database: Database, make: Factory
) -> None:
    here, there = await clinic(make), await clinic(make)
    key = await booked(database, here)
    signing, now = client.services.download_keys[0], int(time.time())
    good = links.name(signing, f"a{key}", now + 100)

    async def status(name: str) -> int:
        return (await client.http.get(f"/calendars/{name}.ics")).status_code

    assert await status(good) == 200
    assert await status(links.name(signing, f"a{key}", now - 1)) == 403
    assert await status(links.name(b"another key", f"a{key}", now + 100)) == 403
    assert await status(good.replace(f"a{key}-", f"a{key + 1}-")) == 403
    assert await status(links.name(signing, str(key), now + 100)) == 403  # a certificate's
    assert await status(links.name(signing, f"a{10**9}", now + 100)) == 404
    assert (await client.http.get(f"/certificates/{good}.pdf")).status_code == 403
    assert (await client.data(DAY, there.doctor, id=gid("Schedule", here.schedule), day="2026-01-01"))[
        "dayCalendar"
    ] is None
    assert await client.codes(DAY, here.person, id=gid("Schedule", here.schedule), day="2026-01-01") == [
        "FORBIDDEN"
    ]
