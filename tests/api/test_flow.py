"""A ward's day through GraphQL: from an empty network to a certificate."""

import asyncio
import io
from datetime import UTC, datetime, timedelta

import pypdf

from tests.client import Client, gid
from tests.factories import Factory


async def test_a_patient_is_registered_admitted_moved_discharged_and_certified(
    client: Client, make: Factory
) -> None:
    admin = await make.actor(superadmin=True)
    place = await client.mutate(
        "dispensaryCreate",
        "... on Dispensary { id }",
        {
            "name": "Наркологический диспансер № 1",
            "neutralName": "Городская больница",
            "address": "Москва, Лесная, 5",
            "timeZone": "Europe/Moscow",
        },
        admin,
    )
    room = await client.mutate(
        "roomCreate",
        "... on Room { id }",
        {"dispensaryId": place["id"], "number": "1", "sex": "FEMALE"},
        admin,
    )
    first, second = [
        await client.mutate(
            "bedCreate", "... on Bed { id status }", {"roomId": room["id"], "label": label}, admin
        )
        for label in "АБ"
    ]
    patient = await client.mutate(
        "patientRegister",
        "... on Patient { id }",
        {
            "dispensaryId": place["id"],
            "recordNumber": "17",
            "sex": "FEMALE",
            "familyName": "Соловьёва",
            "givenName": "Алёна",
            "birthDate": "1990-05-06",
        },
        admin,
    )

    stay = await client.mutate(
        "stayCheckIn",
        "... on Stay { id version currentBed { id status } patient { familyName currentStay { id } } }",
        {"patientId": patient["id"], "bedId": first["id"], "checkedInAt": "2026-03-03T09:00:00+03:00"},
        admin,
    )
    assert stay["currentBed"] == {"id": first["id"], "status": "OCCUPIED"}
    moved = await client.mutate(
        "stayTransfer",
        "... on Stay { version assignments { bed { label } endedAt } }",
        {"id": stay["id"], "version": 1, "bedId": second["id"], "at": "2026-03-05T09:00:00+03:00"},
        admin,
    )
    assert [item["bed"]["label"] for item in moved["assignments"]] == ["А", "Б"]
    ended = await client.mutate(
        "stayCheckOut",
        "... on Stay { bedDays outcome certificates { number sha256 downloadUrl verificationCode } }",
        {
            "id": stay["id"],
            "version": moved["version"],
            "outcome": "DISCHARGED",
            "at": "2026-03-14T12:00:00+03:00",
            "certificate": {"neutralHeader": True, "purpose": "для предъявления по месту работы"},
        },
        admin,
    )

    assert (ended["bedDays"], ended["outcome"]) == (11, "DISCHARGED")
    [certificate] = ended["certificates"]
    answer = await client.http.get(certificate["downloadUrl"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/pdf")
    text = " ".join(pypdf.PdfReader(io.BytesIO(answer.content)).pages[0].extract_text().split())
    assert "Соловьёва Алёна" in text
    assert "Городская больница" in text
    assert "аркологический" not in text
    assert (await client.http.get(certificate["downloadUrl"])).content == answer.content
    page = await client.http.get(f"/verify/{certificate['verificationCode']}")
    assert page.status_code == 200
    assert "Справка действительна" in page.text
    assert "Соловьёва" not in page.text


async def test_a_doctor_sees_their_own_dispensary_and_nothing_else(client: Client, make: Factory) -> None:
    here, there = await make.dispensary(), await make.dispensary()
    beds = [await make.bed(here), await make.bed(there)]
    patients = [await make.patient(here), await make.patient(there)]
    stays = [await make.stay(patient, bed) for patient, bed in zip(patients, beds, strict=True)]
    doctor = await make.actor(doctor_of=(here,))
    rows = {"Dispensary": (here, there), "Bed": beds, "Patient": patients, "Stay": stays}

    for type_name, (own, strange) in rows.items():
        field = type_name.lower()
        query = (
            f"query ($id: ID!) {{ one: {field}(id: $id) {{ id }} "
            "node(id: $id) { id } nodes(ids: [$id]) { id } }"
        )
        mine = await client.data(query, doctor, id=gid(type_name, own))
        theirs = await client.post(query, doctor, id=gid(type_name, strange))
        missing = await client.post(query, doctor, id=gid(type_name, 10**9))
        assert mine == {
            "one": {"id": gid(type_name, own)},
            "node": {"id": gid(type_name, own)},
            "nodes": [{"id": gid(type_name, own)}],
        }
        assert theirs == missing
        assert theirs["data"] == {"one": None, "node": None, "nodes": [None]}
    lists = await client.data(
        "{ dispensaries { totalCount } beds { totalCount } patients { totalCount } "
        "stays { totalCount } rooms { totalCount } }",
        doctor,
    )
    assert {name: item["totalCount"] for name, item in lists.items()} == dict.fromkeys(lists, 1)


async def test_a_patient_sees_their_own_record_once_it_is_linked(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    doctor, user = await make.actor(doctor_of=(place,)), await make.actor()
    patient = await make.patient(place)
    await make.stay(patient, await make.bed(place), diagnosis_code="F10.2")
    await make.stay(await make.patient(place), await make.bed(place))
    query = (
        "{ me { patient { familyName } } "
        "stays { edges { node { diagnosisCode patient { id } dispensary { name } } } } }"
    )

    before = await client.data(query, user)
    linked = await client.mutate(
        "patientLinkAccount",
        "... on Patient { version }",
        {"id": gid("Patient", patient), "version": 1, "accountId": gid("Account", user.account_id)},
        doctor,
    )
    after = await client.data(query, user)

    assert before == {"me": {"patient": None}, "stays": {"edges": []}}
    assert linked["version"] == 2
    assert after["me"]["patient"] == {"familyName": patient.family_name}
    assert [edge["node"] for edge in after["stays"]["edges"]] == [
        {
            "diagnosisCode": "F10.2",
            "patient": {"id": gid("Patient", patient)},
            "dispensary": {"name": place.name},
        }
    ]
    assert await client.codes("{ stays { edges { node { boardAlias } } } }", user) == ["FORBIDDEN"]


async def test_a_dispatcher_reserves_but_sees_no_patient(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    free, taken = await make.bed(place), await make.bed(place)
    patient = await make.patient(place)
    await make.stay(patient, taken)
    dispatcher = await make.actor(dispatcher_of=(place,))

    board = await client.data("{ beds { edges { node { id status } } } }", dispatcher)
    reserved = await client.mutate(
        "bedReserve",
        "... on Reservation { bed { status } }",
        {"bedId": gid("Bed", free), "until": "2099-01-01T00:00:00Z"},
        dispatcher,
    )
    soon = await client.mutate(
        "bedReserve",
        "... on Reservation { bed { status } }",
        {"bedId": gid("Bed", free), "until": _tomorrow()},
        dispatcher,
    )
    named = await client.mutate(
        "bedReserve",
        "... on Reservation { id }",
        {
            "bedId": gid("Bed", await make.bed(place)),
            "until": _tomorrow(),
            "patientId": gid("Patient", patient),
        },
        dispatcher,
    )

    assert sorted(edge["node"]["status"] for edge in board["beds"]["edges"]) == ["FREE", "OCCUPIED"]
    assert (reserved["code"], reserved["path"]) == ("INVALID_INPUT", ["until"])
    assert soon["bed"]["status"] == "RESERVED"
    assert named["code"] == "FORBIDDEN"
    assert await client.codes("{ patients { totalCount } }", dispatcher) == []
    for forbidden in (
        "{ beds { edges { node { currentAssignment { id } } } } }",
        "{ reservations { edges { node { patient { id } } } } }",
        f'{{ bedOptions(patientId: "{gid("Patient", patient)}", '
        f'dispensaryId: "{gid("Dispensary", place)}") {{ suits }} }}',
    ):
        assert await client.codes(forbidden, dispatcher) == ["FORBIDDEN"]


def _tomorrow() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).isoformat()


async def test_bed_options_give_the_best_first_and_every_reason(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    men, women, any_ = [
        await make.room(place, number=number, sex=sex)
        for number, sex in (("10", "MALE"), ("2", "FEMALE"), ("3", "ANY"))
    ]
    apart = await make.room(place, number="4", sex="ANY", isolation=True)
    beds = {
        "men": await make.bed(place, men),
        "taken": await make.bed(place, men),
        "women": await make.bed(place, women),
        "any": await make.bed(place, any_),
        "closed": await make.bed(place, any_, service_state="CLOSED"),
        "apart": await make.bed(place, apart),
    }
    names = {gid("Bed", bed): name for name, bed in beds.items()}
    await make.stay(await make.patient(place), beds["taken"])
    patient, doctor = await make.patient(place, sex="MALE"), await make.actor(doctor_of=(place,))
    query = "query ($p: ID!, $d: ID!) { bedOptions(patientId: $p, dispensaryId: $d) { suits obstacles bed { id } } }"

    options = await client.data(query, doctor, p=gid("Patient", patient), d=gid("Dispensary", place))
    stranger = await client.data(
        query,
        await make.actor(doctor_of=(await make.dispensary(),)),
        p=gid("Patient", patient),
        d=gid("Dispensary", place),
    )

    found = [(names[item["bed"]["id"]], item["obstacles"]) for item in options["bedOptions"]]
    assert found[:2] == [("men", []), ("any", [])]
    assert dict(found[2:]) == {
        "taken": ["OCCUPIED"],
        "women": ["ROOM_SEX"],
        "closed": ["CLOSED"],
        "apart": ["ISOLATION_ROOM"],
    }
    assert stranger == {"bedOptions": []}


async def test_names_are_found_in_any_letter_case_and_with_yo_as_ye(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    admin = await make.actor(superadmin=True)
    await make.patient(place, family_name="Фёдоров", given_name="Семён", patronymic="Артёмович")
    await make.patient(place, family_name="Ёлкина", given_name="Пётр")
    await make.patient(place, code_name="Берёза-7")

    async def found(text: str) -> list[str | None]:
        data = await client.data(
            "query ($text: String!) { patients(where: {search: $text}) { edges { node { familyName codeName } } } }",
            admin,
            text=text,
        )
        return [edge["node"]["familyName"] or edge["node"]["codeName"] for edge in data["patients"]["edges"]]

    assert await found("федоров") == ["Фёдоров"]
    assert await found("СЕМЕН фёд") == ["Фёдоров"]
    assert await found("ёлк") == await found("ЕЛКИНА") == ["Ёлкина"]
    assert await found("береза") == ["Берёза-7"]
    assert await found("нет такого") == []
    everyone = await client.data("{ patients { edges { node { familyName codeName } } } }", admin)
    order = [edge["node"]["familyName"] or edge["node"]["codeName"] for edge in everyone["patients"]["edges"]]
    assert order == ["Берёза-7", "Ёлкина", "Фёдоров"]


async def test_an_idempotency_key_gives_the_first_result_again(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    admin = await make.actor(superadmin=True)
    order = {"dispensaryId": gid("Dispensary", place), "number": "5", "idempotencyKey": "k1"}

    first = await client.mutate("roomCreate", "... on Room { id }", order, admin)
    again = await client.mutate("roomCreate", "... on Room { id }", order, admin)
    other = await client.mutate("roomCreate", "... on Room { id }", {**order, "number": "6"}, admin)

    assert first == again
    assert other["code"] == "IDEMPOTENCY_KEY_REUSED"


async def test_a_mutation_sent_many_times_at_once_with_one_key_is_done_once(
    client: Client, make: Factory
) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    order = {
        "dispensaryId": gid("Dispensary", place),
        "recordNumber": "1",
        "sex": "MALE",
        "familyName": "Иванов",
        "givenName": "Иван",
        "idempotencyKey": "one",
    }

    answers = await asyncio.gather(
        *(client.mutate("patientRegister", "... on Patient { id }", order, doctor) for _ in range(15))
    )

    assert len({answer["id"] for answer in answers}) == 1
    assert await make.database.fetch_value("SELECT count(*) FROM patient") == 1


async def test_a_blocked_account_and_old_roles_stop_at_once(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    admin, doctor = await make.actor(superadmin=True), await make.actor(doctor_of=(place,))
    target = gid("Account", doctor.account_id)

    assert await client.codes("{ beds { totalCount } }", doctor) == []
    await client.mutate(
        "roleRevoke",
        "... on Account { grants { role } }",
        {"accountId": target, "role": "DOCTOR", "dispensaryId": gid("Dispensary", place)},
        admin,
    )
    assert await client.codes("{ beds { totalCount } }", doctor) == ["UNAUTHENTICATED"]
    blocked = await client.mutate("accountBlock", "... on Account { blockedAt }", {"id": target}, admin)
    own = await client.mutate(
        "accountBlock", "... on Account { id }", {"id": gid("Account", admin.account_id)}, admin
    )

    assert blocked["blockedAt"] is not None
    assert own["code"] == "OWN_ACCOUNT"
