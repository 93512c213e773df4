"""The outpatient clinic as clients see it: who finds which slots, booking over HTTP, watching, statistics."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest

from ekoyka.database import Database
from ekoyka.outpatient.tables import Appointment, Notification
from ekoyka.settings import Settings
from tests.client import Client, gid
from tests.factories import Factory
from tests.feed import subscribed, token
from tests.inpatient.test_burst import deadlocks
from tests.invariants import broken_invariants
from tests.outpatient.clinic import at, booked, clinic, noon, patient_of
from tests.servers import running

FREE = """query ($where: SlotWhere, $first: Int, $after: String) {
  freeSlots(where: $where, first: $first, after: $after) { totalCount pageInfo { endCursor }
    edges { node { id startsAt endsAt status doctor { name } clinic { name timeZone } } } } }"""


async def free(client: Client, actor: Any, **where: Any) -> list[str]:
    found = await client.data(FREE, actor, where=where)
    return [edge["node"]["id"] for edge in found["freeSlots"]["edges"]]


async def test_anybody_signed_in_finds_free_slots_of_the_future_earliest_first(
    client: Client, database: Database, make: Factory
) -> None:
    here, there = await clinic(make, 3), await clinic(make, 2)
    stranger = await make.actor()
    await make.slot(here.schedule, datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=5))
    await booked(database, here, 1)

    everywhere = (await client.data(FREE, stranger))["freeSlots"]
    doctor = gid("Account", here.doctor.account_id)

    slots = [gid("Slot", slot) for slot in (here.slots[0], there.slots[0], there.slots[1], here.slots[2])]
    assert [edge["node"]["id"] for edge in everywhere["edges"]] == slots
    assert everywhere["totalCount"] == 4
    assert {edge["node"]["status"] for edge in everywhere["edges"]} == {"FREE"}
    assert await free(client, stranger, doctorId=doctor) == [slots[0], slots[3]]
    assert await free(client, stranger, dispensaryId=gid("Dispensary", there.place)) == slots[1:3]
    period = {"from": noon(20).isoformat(), "until": noon(40).isoformat()}
    assert await free(client, stranger, **period) == [slots[2]]
    assert await client.codes(FREE) == ["UNAUTHENTICATED"]


async def test_who_has_a_slot_is_shown_to_nobody_but_the_dispensarys_doctors_and_the_patient(
    client: Client, database: Database, make: Factory
) -> None:
    here, there = await clinic(make), await clinic(make)
    key = await booked(database, here)
    slot = gid("Slot", here.slots[0])
    query = "query ($id: ID!) { slot(id: $id) { status appointment { patient { id } } } }"
    plain = "query ($id: ID!, $a: ID!) { slot(id: $id) { status } appointment(id: $a) { id } }"

    seen = await client.data(query, here.doctor, id=slot)
    own = await client.data(plain, here.person, id=slot, a=gid("Appointment", key))
    dispatcher = await make.actor(dispatcher_of=(here.place,))

    assert seen["slot"] == {
        "status": "BUSY",
        "appointment": {"patient": {"id": gid("Patient", here.patient)}},
    }
    assert own == {"slot": None, "appointment": {"id": gid("Appointment", key)}}
    assert await client.codes(query, here.person, id=slot) == ["FORBIDDEN"]
    for actor in (there.doctor, there.person, dispatcher):
        found = await client.data(plain, actor, id=slot, a=gid("Appointment", key))
        assert found == {"slot": None, "appointment": None}


async def test_a_blocked_doctors_slots_are_free_to_nobody_from_that_moment_on(
    client: Client, make: Factory
) -> None:
    here, admin = await clinic(make), await make.actor(superadmin=True)
    account = {"id": gid("Account", here.doctor.account_id)}

    await client.mutate("accountBlock", "", account, admin)
    blocked = await free(client, here.person)
    await client.mutate("accountUnblock", "", account, admin)

    assert blocked == []
    assert len(await free(client, here.person)) == 4


async def test_a_visit_from_the_form_to_the_end(client: Client, database: Database, make: Factory) -> None:
    here = await clinic(make)
    slot, other = gid("Slot", here.slots[0]), gid("Slot", here.slots[1])

    held = await client.mutate("slotHold", "... on Slot { status heldUntil }", {"slotId": slot}, here.person)
    order = {"slotId": slot, "reason": "бессонница", "idempotencyKey": "form-1"}
    first = await client.mutate(
        "appointmentBook", "... on Appointment { id version status }", order, here.person
    )
    again = await client.mutate(
        "appointmentBook", "... on Appointment { id version status }", order, here.person
    )
    moved = await client.mutate(
        "appointmentMove",
        "... on Appointment { version startsAt }",
        {"id": first["id"], "version": 1, "slotId": other},
        here.person,
    )
    stale = await client.mutate(
        "appointmentCancel",
        "... on VersionConflict { current { ... on Appointment { version } } }",
        {"id": first["id"], "version": 1},
        here.person,
    )
    cancelled = await client.mutate(
        "appointmentCancel",
        "... on Appointment { status cancellationReason }",
        {"id": first["id"], "version": 2, "reason": "не смогу"},
        here.person,
    )

    assert held["status"] == "BUSY_TENTATIVE"
    assert held["heldUntil"] is not None
    assert first == again
    assert (first["status"], first["version"]) == ("BOOKED", 1)
    assert moved["version"] == 2
    assert datetime.fromisoformat(moved["startsAt"]) == here.slots[1].starts_at
    assert (stale["code"], stale["current"]) == ("VERSION_CONFLICT", {"version": 2})
    assert (cancelled["status"], cancelled["cancellationReason"]) == ("CANCELLED", "не смогу")
    assert await database.fetch_value("SELECT count(*) FROM appointment") == 1


async def test_a_refusal_brings_the_nearest_free_slots_and_speaks_the_clients_language(
    client: Client, database: Database, make: Factory
) -> None:
    here = await clinic(make)
    _, other = await patient_of(make, here.place)
    await booked(database, here, 1)

    refused = await client.mutate(
        "appointmentBook",
        "... on SlotTaken { alternatives { id startsAt } }",
        {"slotId": gid("Slot", here.slots[1])},
        other,
    )

    assert (refused["code"], refused["path"]) == ("SLOT_TAKEN", ["slotId"])
    assert refused["message"] == "Это время уже занято: выберите другое."
    assert [slot["id"] for slot in refused["alternatives"]] == [
        gid("Slot", here.slots[number]) for number in (0, 2, 3)
    ]


STATEMENTS = {
    "slotHold": 4,
    "appointmentBook": 4,
    "appointmentMove": 5,
    "appointmentCancel": 5,
}


async def test_every_change_of_a_visit_takes_its_statements_and_no_more(
    client: Client, make: Factory
) -> None:
    """Each locks, looks, writes and reads its payload; what gives a slot free looks who waits for it, too."""
    here = await clinic(make)
    counted: dict[str, int] = {}

    async def count(name: str, type_name: str, **input: Any) -> str:
        before = client.services.database.statements
        answer = await client.mutate(name, f"... on {type_name} {{ id }}", input, here.person)
        counted[name] = client.services.database.statements - before
        assert "code" not in answer, answer
        return str(answer["id"])

    await count("slotHold", "Slot", slotId=gid("Slot", here.slots[0]))
    key = await count("appointmentBook", "Appointment", slotId=gid("Slot", here.slots[0]))
    await count("appointmentMove", "Appointment", id=key, version=1, slotId=gid("Slot", here.slots[1]))
    await count("appointmentCancel", "Appointment", id=key, version=2)

    assert counted == STATEMENTS


async def test_of_fifty_bookings_of_one_slot_over_http_and_several_processes_one_succeeds(
    database_url: str, database: Database, settings: Settings, make: Factory
) -> None:
    here = await clinic(make)
    people = [(await patient_of(make, here.place))[1] for _ in range(50)]
    before = await deadlocks(database_url, settings)
    query = (
        "mutation ($id: ID!) { appointmentBook(input: {slotId: $id}) "
        "{ __typename ... on SlotTaken { alternatives { id } } } }"
    )

    async with running(settings, 3) as servers, httpx.AsyncClient(timeout=60) as http:

        async def book(number: int) -> dict[str, Any]:
            answer = await http.post(
                f"{servers[number % 3].url}/graphql",
                json={"query": query, "variables": {"id": gid("Slot", here.slots[0])}},
                headers={"authorization": f"Bearer {token(people[number])}"},
            )
            found: dict[str, Any] = answer.json()["data"]["appointmentBook"]
            return found

        ends = await asyncio.gather(*(book(number) for number in range(50)))

    assert Counter(end["__typename"] for end in ends) == {"Appointment": 1, "SlotTaken": 49}
    nearest = [{"id": gid("Slot", slot)} for slot in here.slots[1:]]
    assert all(end["alternatives"] == nearest for end in ends if end["__typename"] == "SlotTaken")
    assert await deadlocks(database_url, settings) == before
    assert await broken_invariants(database) == []


async def test_a_doctors_week_from_the_timetable_to_a_leave(
    client: Client, database: Database, make: Factory
) -> None:
    place = await make.dispensary(time_zone="Asia/Vladivostok")
    doctor, colleague = [await make.actor(doctor_of=(place,)) for _ in range(2)]
    _, person = await patient_of(make, place)
    days = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")
    hours = [{"weekday": day, "startsAt": "11:00", "endsAt": "13:00"} for day in days]
    schedules = []
    for actor in (doctor, colleague):
        table = await client.mutate(
            "timetableSet",
            "... on Timetable { visitMinutes hours { weekday startsAt endsAt } schedule { id } }",
            {
                "doctorId": gid("Account", actor.account_id),
                "dispensaryId": gid("Dispensary", place),
                "visitMinutes": 20,
                "hours": hours,
            },
            doctor,
        )
        assert table["hours"] == hours
        schedules.append(table["schedule"]["id"])
    slots = await client.data(
        "query ($where: SlotWhere) { freeSlots(where: $where, first: 100) { edges { node { id startsAt } } } }",
        person,
        where={"doctorId": gid("Account", doctor.account_id)},
    )
    starts = [edge["node"] for edge in slots["freeSlots"]["edges"]]
    day = datetime.fromisoformat(starts[-1]["startsAt"])
    last = starts[-6:]
    assert [
        datetime.fromisoformat(item["startsAt"]).astimezone(at("2026-01-01 00:00").tzinfo).strftime("%H:%M")
        for item in last
    ] == ["01:00", "01:20", "01:40", "02:00", "02:20", "02:40"]
    taken = await client.mutate(
        "appointmentBook", "... on Appointment { id }", {"slotId": last[0]["id"]}, person
    )

    leave = await client.mutate(
        "timeOffAdd",
        "... on TimeOff { id affectedAppointments { appointment { id } proposals { startsAt doctor { accountId } } } }",
        {
            "scheduleId": schedules[0],
            "kind": "LEAVE",
            "reason": "отпуск",
            "startsAt": (day - timedelta(hours=6)).isoformat(),
            "endsAt": (day + timedelta(hours=6)).isoformat(),
        },
        doctor,
    )
    moved = await client.mutate(
        "timeOffMoveAppointments",
        "... on TimeOff { affectedAppointments { appointment { id } } }",
        {"id": leave["id"]},
        doctor,
    )
    told = await client.data(
        "{ notifications { edges { node { kind message readAt appointment { doctor { accountId } } } } } }",
        person,
    )
    generated = await client.mutate(
        "slotsGenerate", "... on SlotsMade { made withdrawn }", {"scheduleId": schedules[0]}, doctor
    )

    [affected] = leave["affectedAppointments"]
    assert affected["appointment"]["id"] == taken["id"]
    assert affected["proposals"][0] == {
        "startsAt": last[0]["startsAt"],
        "doctor": {"accountId": gid("Account", colleague.account_id)},
    }
    assert moved["affectedAppointments"] == []
    nodes = [edge["node"] for edge in told["notifications"]["edges"]]
    assert [node["kind"] for node in nodes] == ["MOVED", "LEAVE", "BOOKED"]
    when = (day - timedelta(minutes=100) + timedelta(hours=10)).strftime("%d.%m.%Y %H:%M")
    assert nodes[0]["message"] == f"Приём перенесён: {when}."
    assert (generated["made"], generated["withdrawn"]) == (0, 1)  # the slot that the patient left


async def test_a_check_out_offers_follow_up_visits_and_books_one_in_the_same_breath(
    client: Client, database: Database, make: Factory
) -> None:
    here = await clinic(make, 3)
    bed = await make.bed(here.place)
    stay = await make.stay(here.patient, bed)
    late = await make.slot(here.schedule, noon(60 * 24 * 9))
    query = "query ($id: ID!) { stay(id: $id) { followUpSlots { id } } }"
    offered = (await client.data(query, here.doctor, id=gid("Stay", stay)))["stay"]["followUpSlots"]
    _, other = await patient_of(make, here.place)
    await booked(database, here, 0, actor=other)

    async def check_out(slot: Any) -> dict[str, Any]:
        return await client.mutate(
            "stayCheckOut",
            "... on Stay { checkedOutAt followUpSlots { id } } ... on SlotTaken { alternatives { id } }",
            {
                "id": gid("Stay", stay),
                "version": 1,
                "outcome": "DISCHARGED",
                "followUpSlotId": gid("Slot", slot),
            },
            here.doctor,
        )

    refused = await check_out(here.slots[0])
    open_still = await database.fetch_value("SELECT checked_out_at IS NULL FROM stay")
    done = await check_out(here.slots[1])

    assert [slot["id"] for slot in offered] == [gid("Slot", slot) for slot in here.slots]
    assert gid("Slot", late) not in {slot["id"] for slot in offered}
    assert (refused["code"], refused["path"]) == ("SLOT_TAKEN", ["followUpSlotId"])
    assert open_still
    assert done["checkedOutAt"] is not None
    assert [slot["id"] for slot in done["followUpSlots"]] == [gid("Slot", here.slots[2])]
    rows = await database.fetch("SELECT patient_id, slot_id FROM appointment ORDER BY id")
    assert tuple(rows[1]) == (here.patient.id, here.slots[1].id)


async def test_notifications_are_read_one_by_one_or_all_at_once_and_their_text_is_made_for_the_reader(
    client: Client, database: Database, make: Factory
) -> None:
    here = await clinic(make)
    await database.fetch("UPDATE account SET language = 'en' WHERE id = $1", here.person.account_id)
    for number in range(3):
        await booked(database, here, number)
    query = "{ notifications(where: {unread: true}) { totalCount edges { node { id message } } } }"
    first = (await client.data(query, here.person))["notifications"]["edges"][0]["node"]

    one = await client.mutate(
        "notificationRead", "... on NotificationsRead { read }", {"id": first["id"]}, here.person
    )
    left = (await client.data(query, here.person))["notifications"]["totalCount"]
    rest = await client.mutate("notificationRead", "... on NotificationsRead { read }", {}, here.person)

    assert first["message"].startswith("A visit is booked: ")
    assert here.place.name not in first["message"]
    assert (one["read"], left, rest["read"]) == (1, 2, 2)


PER_DAY = """query ($from: Date!, $until: Date!, $doctor: ID, $place: ID, $status: [AppointmentStatus!]) {
  appointmentsPerDay(from: $from, until: $until, doctorId: $doctor, dispensaryId: $place, status: $status) { day count }
  slotUtilisation(from: $from, until: $until, doctorId: $doctor, dispensaryId: $place) { slots taken rate }
  noShowRate(from: $from, until: $until, doctorId: $doctor, dispensaryId: $place) { visits noShows rate }
  waitingTime(from: $from, until: $until, doctorId: $doctor, dispensaryId: $place) {
    visits averageDays medianDays longestDays } }"""


async def test_statistics_count_in_the_dispensarys_own_days(client: Client, make: Factory) -> None:
    east = await make.dispensary(time_zone="Asia/Vladivostok")
    west = await make.dispensary(time_zone="Europe/Kaliningrad")
    for place in (east, west):
        doctor = await make.account(doctor_of=(place,))
        schedule = await make.schedule(doctor, place, {})
        # 20:00 UTC is the next day in the one and the same in the other.
        for hour, status, waited in (
            (20, "FULFILLED", 1),
            (2, "NOSHOW", 5),
            (3, "CANCELLED", 9),
            (4, None, 0),
        ):
            slot = await make.slot(schedule, at(f"2026-03-03 {hour:02}:00"))
            if status is not None:
                await make.keep(
                    Appointment(
                        patient_id=(await make.patient(place)).id,
                        slot_id=slot.id,
                        doctor_id=slot.doctor_id,
                        dispensary_id=place.id,
                        starts_at=slot.starts_at,
                        ends_at=slot.ends_at,
                        status=status,
                        ended_at=slot.ends_at,
                        booked_at=slot.starts_at - timedelta(days=waited),
                    )
                )
    admin, doctor_here = await make.actor(superadmin=True), await make.actor(doctor_of=(east,))
    period = {"from": "2026-03-02", "until": "2026-03-05"}

    whole = await client.data(PER_DAY, admin, **period)
    mine = await client.data(PER_DAY, doctor_here, **period)
    some = await client.data(PER_DAY, admin, **period, status=["NOSHOW"], place=gid("Dispensary", west))
    none = await client.data(PER_DAY, admin, **{"from": "2026-01-01", "until": "2026-01-01"})

    def counts(data: dict[str, Any]) -> list[int]:
        return [item["count"] for item in data["appointmentsPerDay"]]

    assert [item["day"] for item in whole["appointmentsPerDay"]] == [
        f"2026-03-0{day}" for day in (2, 3, 4, 5)
    ]
    assert (counts(whole), counts(mine), counts(some)) == ([0, 5, 1, 0], [0, 2, 1, 0], [0, 1, 0, 0])
    assert whole["slotUtilisation"] == {"slots": 8, "taken": 4, "rate": 0.5}
    assert whole["noShowRate"] == {"visits": 4, "noShows": 2, "rate": 0.5}
    assert whole["waitingTime"] == {"visits": 4, "averageDays": 3.0, "medianDays": 3.0, "longestDays": 5}
    assert mine["slotUtilisation"]["slots"] == 4
    assert none["noShowRate"] == {"visits": 0, "noShows": 0, "rate": None}
    assert none["waitingTime"] == {"visits": 0, "averageDays": None, "medianDays": None, "longestDays": None}
    assert counts(none) == [0]


async def test_a_period_of_statistics_ends_after_a_year(client: Client, make: Factory) -> None:
    admin = await make.actor(superadmin=True)

    found = await client.data(PER_DAY, admin, **{"from": "2020-01-01", "until": "2029-01-01"})

    days = [date.fromisoformat(item["day"]) for item in found["appointmentsPerDay"]]
    assert (len(days), days[-1]) == (366, date(2020, 12, 31))


SLOTS = """subscription ($id: ID!, $after: String) { freeSlots(doctorId: $id, after: $after) {
  kind cursor changes { cursor change slot { id } } freeSlots { edges { node { id } } } } }"""
MINE = """subscription ($after: String) { myAppointments(after: $after) {
  kind cursor changes { change appointment { id status } } appointments { totalCount } } }"""
NOTIFIED = """subscription ($after: String) { myNotifications(after: $after) {
  kind cursor changes { notification { kind } } unreadCount } }"""


async def test_free_slots_own_appointments_and_notifications_are_delivered_live(
    database: Database, settings: Settings, make: Factory
) -> None:
    here = await clinic(make)
    stranger = await make.actor()
    async with running(settings, 2) as servers, AsyncExitStack() as stack:
        doctor = gid("Account", here.doctor.account_id)
        watcher = await subscribed(stack, servers[0], stranger, SLOTS, id=doctor)
        patient = await subscribed(stack, servers[1], here.person, MINE)
        mine = await subscribed(stack, servers[0], here.doctor, MINE)
        feed = await subscribed(stack, servers[1], here.person, NOTIFIED)
        before = watcher.last
        key = await booked(database, here, 1)
        changes = [await socket.told("1", 1) for socket in (watcher, patient, mine, feed)]

    assert before["kind"] == "SNAPSHOT"
    assert [edge["node"]["id"] for edge in before["freeSlots"]["edges"]] == [
        gid("Slot", slot) for slot in here.slots
    ]
    # What is not free any more is not shown to a stranger, who is told that it is gone.
    assert changes[0][0]["change"] == "TAKEN"
    assert changes[0][0]["slot"] is None
    assert len(watcher.last["freeSlots"]["edges"]) == 3
    told = {"change": "BOOKED", "appointment": {"id": gid("Appointment", key), "status": "BOOKED"}}
    assert changes[1] == changes[2] == [told]
    assert patient.last["appointments"]["totalCount"] == mine.last["appointments"]["totalCount"] == 1
    assert changes[3] == [{"notification": {"kind": "BOOKED"}}]
    assert feed.last["unreadCount"] == 1


async def test_patients_who_watch_one_doctor_share_one_reading(
    database: Database, settings: Settings, make: Factory
) -> None:
    here = await clinic(make)
    async with running(settings) as [server], AsyncExitStack() as stack:
        doctor = gid("Account", here.doctor.account_id)
        people = [await subscribed(stack, server, await make.actor(), SLOTS, id=doctor) for _ in range(20)]
        async with httpx.AsyncClient() as http:

            async def reads() -> float:
                said = (await http.get(f"{server.url}/metrics")).text
                [line] = [item for item in said.splitlines() if item.startswith("ekoyka_feed_reads_total")]
                return float(line.split()[1])

            before = await reads()
            await booked(database, here)
            for person in people:
                await person.told("1", 1)
            after = await reads()

    assert after - before == 1


async def test_a_client_that_comes_back_with_its_cursor_misses_nothing(
    database: Database, settings: Settings, make: Factory
) -> None:
    here = await clinic(make)
    doctor = gid("Account", here.doctor.account_id)
    async with running(settings) as [server], AsyncExitStack() as stack:
        first = await subscribed(stack, server, here.person, SLOTS, id=doctor)
        await booked(database, here, 0)
        await booked(database, here, 1)
        again = await subscribed(stack, server, here.person, SLOTS, id=doctor, after=first.last["cursor"])

    assert again.last["kind"] == "CHANGE"
    assert [change["change"] for change in again.last["changes"]] == ["TAKEN", "TAKEN"]


async def test_others_notifications_are_nobodys_to_see_not_even_the_administrators(
    client: Client, database: Database, make: Factory
) -> None:
    here, admin = await clinic(make), await make.actor(superadmin=True)
    await booked(database, here)
    key = await database.fetch_value("SELECT id FROM notification ORDER BY id LIMIT 1")
    query = "query ($id: ID!) { node(id: $id) { id } notifications { totalCount } }"

    for actor in (admin, await make.actor()):
        assert await client.data(query, actor, id=gid("Notification", key)) == {
            "node": None,
            "notifications": {"totalCount": 0},
        }


async def test_notifications_hold_keys_and_codes_alone(database: Database) -> None:
    assert set(Notification.model_fields) == {
        "id",
        "account_id",
        "dispensary_id",
        "kind",
        "appointment_id",
        "offer_id",
        "occasion",
        "created_at",
        "read_at",
    }


@pytest.mark.parametrize(
    ("time", "good"), [("24:00", True), ("00:00", False), ("25:00", False), ("9:00", False), ("24:01", False)]
)
async def test_times_of_the_day_are_checked(client: Client, make: Factory, time: str, good: bool) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    query = (
        "mutation ($doctor: ID!, $place: ID!, $end: Time!) { timetableSet(input: {doctorId: $doctor, "
        'dispensaryId: $place, visitMinutes: 60, hours: [{weekday: MONDAY, startsAt: "23:00", endsAt: $end}]}) '
        "{ __typename ... on Timetable { hours { endsAt } } } }"
    )

    answer = await client.post(
        query, doctor, doctor=gid("Account", doctor.account_id), place=gid("Dispensary", place), end=time
    )

    if good:
        assert answer["data"]["timetableSet"]["hours"] == [{"endsAt": "24:00"}]
    elif "errors" in answer:
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    else:
        assert answer["data"]["timetableSet"]["__typename"] == "Invalid"
