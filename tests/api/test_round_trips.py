"""How often a mutation goes to PostgreSQL: its statements are counted, so that nobody adds a round trip unseen."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event

from tests.client import Client, gid
from tests.factories import Factory

# Beside BEGIN, with which the actor is confirmed, and COMMIT: each locks, looks, writes, and reads its payload.
STATEMENTS = {
    "stayCheckIn": 4,
    "stayTransfer": 4,
    "stayCheckOut": 4,
    "bedReserve": 4,
    "reservationRelease": 4,
    "bedClose": 4,
    "bedSetServiceState": 4,
    # Rare; they go through the tables' classes.
    "stayUpdate": 6,
    "stayCorrect": 14,
    "bedUpdate": 4,
    "roomUpdate": 4,
    "bedArchive": 8,
}


async def test_every_change_of_beds_and_stays_takes_its_statements_and_no_more(
    client: Client, make: Factory
) -> None:
    place = await make.dispensary(cleaning_after_check_out=True)
    room, actor = await make.room(place), await make.actor(superadmin=True)
    first, second, third = [await make.bed(place, room) for _ in range(3)]
    patient = await make.patient(place)
    counted: dict[str, int] = {}

    async def count(name: str, type_name: str, **input: Any) -> str:
        before = client.services.database.statements
        answer = await client.mutate(name, f"... on {type_name} {{ id }}", input, actor)
        counted[name] = client.services.database.statements - before
        assert "code" not in answer, answer
        return str(answer["id"])

    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    beds = [gid("Bed", bed) for bed in (first, second, third)]
    stay = await count("stayCheckIn", "Stay", patientId=gid("Patient", patient), bedId=beds[0])
    await count("stayTransfer", "Stay", id=stay, version=1, bedId=beds[1])
    await count("stayUpdate", "Stay", id=stay, version=2, diagnosisCode="F10.2")
    await count("stayCheckOut", "Stay", id=stay, version=3, outcome="DISCHARGED")
    await count("stayCorrect", "Stay", id=stay, version=4, reason="ошибка", outcome="DIED")
    kept = await count("bedReserve", "Reservation", bedId=beds[2], until=until)
    await count("reservationRelease", "Reservation", id=kept)
    await count("bedClose", "Bed", id=beds[2], reason="ремонт")
    await count("bedSetServiceState", "Bed", id=beds[2], state="IN_SERVICE")
    await count("bedUpdate", "Bed", id=beds[2], version=3, label="новая")
    await count("roomUpdate", "Room", id=gid("Room", room), version=1, number="новая")
    await count("bedArchive", "Bed", id=beds[2], version=4)

    assert counted == STATEMENTS


async def test_a_refusal_costs_no_more_than_the_change(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    bed, actor = await make.bed(place), await make.actor(doctor_of=(place,))
    await make.stay(await make.patient(place), bed)
    order = {"patientId": gid("Patient", await make.patient(place)), "bedId": gid("Bed", bed)}

    before = client.services.database.statements
    refused = await client.mutate("stayCheckIn", "", order, actor)

    assert refused["code"] == "BED_OCCUPIED"
    assert client.services.database.statements - before == 4


async def test_a_check_in_is_six_round_trips(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    room, actor = await make.room(place), await make.actor(doctor_of=(place,))
    sent: list[str] = []

    def tell(query: Any) -> None:
        sent.append(query.query.split()[0])

    def listen(connection: Any, *_: object) -> None:
        connection.driver_connection.add_query_logger(tell)

    event.listen(client.services.database.engine.sync_engine, "checkout", listen)
    for _ in range(2):  # a new connection learns the types of its statements first
        await asyncio.sleep(0)  # what was sent is told in the loop's next turn
        sent.clear()
        order = {
            "patientId": gid("Patient", await make.patient(place)),
            "bedId": gid("Bed", await make.bed(place, room)),
        }
        await client.mutate("stayCheckIn", "... on Stay { id }", order, actor)
    await asyncio.sleep(0)

    assert sent == ["BEGIN;", "WITH", "WITH", "WITH", "SELECT", "COMMIT"]
