"""The access log: who was shown or changed whose record, from queries, payloads and events alike."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from graphql import GraphQLObjectType

from ekoyka import checkup
from ekoyka.database import NETWORK, SERVER_ROLE, WARD_ROLE, Database
from ekoyka.graph.model import TYPES
from ekoyka.identity import seals
from ekoyka.identity.actors import Actor
from ekoyka.settings import Settings
from tests.client import Client, gid
from tests.factories import Factory
from tests.feed import happen, token
from tests.graph.test_walls import CLINICAL
from tests.servers import Socket, running

BOARD = """query ($id: ID!) { dispensary(id: $id) { beds { edges { node { label currentAssignment { stay {
  patient { familyName } } } } } } } }"""
LOG = """query ($where: AccessEntryWhere) { accessEntries(first: 100, where: $where) { edges { node {
  action field role patientCount account { name } dispensary { name } } } } }"""


class Ward:
    """A dispensary with three patients in their beds, and whoever may ask about them."""

    def __init__(self, make: Factory) -> None:
        self.make = make

    async def open(self) -> Ward:
        make = self.make
        self.place = await make.dispensary()
        self.person = await make.account(name="Пациент Сам")
        self.patients = [
            await make.patient(self.place, account_id=self.person.id if number == 0 else None)
            for number in range(3)
        ]
        self.beds = [await make.bed(self.place) for _ in range(4)]
        self.stays = [
            await make.stay(patient, bed) for patient, bed in zip(self.patients, self.beds, strict=False)
        ]
        self.doctor = await make.actor(doctor_of=(self.place,))
        self.admin = await make.actor(superadmin=True)
        self.patient = Actor(account_id=self.person.id, auth_version=1)
        return self

    async def reads(self) -> list[dict[str, Any]]:
        """The log's reads, first to last, with whom they were about."""
        rows = await self.make.database.fetch(
            "SELECT e.*, coalesce(s.patients, array_remove(ARRAY[e.patient_id], NULL)) AS whom "
            "FROM access_entry e LEFT JOIN access_set s ON s.digest = e.patients "
            "WHERE e.action = 'read' ORDER BY e.id"
        )
        return [dict(row) for row in rows]


@pytest.fixture
async def ward(make: Factory) -> Ward:
    return await Ward(make).open()


async def test_a_board_is_one_entry_for_all_whom_it_shows(client: Client, ward: Ward) -> None:
    answer = await client.http.post(
        "/graphql",
        json={"query": BOARD, "variables": {"id": gid("Dispensary", ward.place)}},
        headers={"authorization": f"Bearer {client.token(ward.doctor)}", "x-request-id": "night-7"},
    )

    assert b"\x1e" not in answer.content
    [entry] = await ward.reads()
    assert sorted(entry["whom"]) == [patient.id for patient in ward.patients]
    assert {
        name: entry[name]
        for name in ("account_id", "role", "field", "dispensary_id", "request_id", "address")
    } == {
        "account_id": ward.doctor.account_id,
        "role": "DOCTOR",
        "field": "dispensary",
        "dispensary_id": ward.place.id,
        "request_id": "night-7",
        "address": "127.0.0.1",
    }


async def test_who_sees_only_that_beds_are_taken_reads_nobodys_record(client: Client, ward: Ward) -> None:
    await client.data("{ beds { edges { node { label status } } } }", ward.doctor)

    assert await ward.reads() == []


@pytest.mark.parametrize("compiled", [True, False])
async def test_each_way_of_reading_is_noted(client: Client, ward: Ward, compiled: bool) -> None:
    ids = {"p": gid("Patient", ward.patients[1]), "s": gid("Stay", ward.stays[2])}
    documents = {
        "patient": "query ($p: ID!) { patient(id: $p) { id } }",
        "node": "query ($s: ID!) { node(id: $s) { ... on Stay { checkedInAt } } }",
        "stays": "{ stays(where: {open: true}) { edges { node { overdue } } } }",
        "patients": '{ patients(where: {search: "Пациентов"}) { totalCount } }',
        "bedOptions": (
            f'query ($p: ID!) {{ bedOptions(patientId: $p, dispensaryId: "{gid("Dispensary", ward.place)}") '
            "{ suits } }"
        ),
    }
    # With introspection in it, a document is Strawberry's own to execute.
    more = "" if compiled else " __schema { __typename } }"
    for document in documents.values():
        text = document if compiled else document.rstrip()[:-1] + more
        await client.data(
            text, ward.doctor, **{name: key for name, key in ids.items() if f"${name}:" in document}
        )

    noted = {entry["field"]: sorted(entry["whom"]) for entry in await ward.reads()}
    everybody = [patient.id for patient in ward.patients]
    assert noted == {
        "patient": [ward.patients[1].id],
        "node": [ward.patients[2].id],
        "stays": everybody,
        "patients": [],
        "bedOptions": [ward.patients[1].id],
    }


async def test_what_a_change_shows_is_noted_beside_the_change(client: Client, ward: Ward) -> None:
    await client.mutate(
        "stayTransfer",
        "... on Stay { dispensary { beds { edges { node { currentAssignment { stay { id } } } } } } }",
        {"id": gid("Stay", ward.stays[0]), "version": 1, "bedId": gid("Bed", ward.beds[3])},
        ward.doctor,
    )
    refused = await client.mutate(
        "stayCheckIn",
        "... on PatientAlreadyAdmitted { stay { checkedInAt } }",
        {"patientId": gid("Patient", ward.patients[1]), "bedId": gid("Bed", ward.beds[0])},
        ward.doctor,
    )

    assert refused["code"] == "PATIENT_ALREADY_ADMITTED"
    shown = [(entry["field"], sorted(entry["whom"])) for entry in await ward.reads()]
    assert shown == [
        ("stayTransfer", [patient.id for patient in ward.patients]),
        ("stayCheckIn", [ward.patients[1].id]),
    ]
    changes = await ward.make.database.fetch(
        "SELECT action, patient_id, role, address FROM access_entry WHERE action <> 'read'"
    )
    assert [tuple(row) for row in changes] == [("stay_transfer", ward.patients[0].id, "DOCTOR", "127.0.0.1")]


async def test_each_event_that_shows_somebody_is_noted_for_each_who_is_told(
    settings: Settings, database: Database, ward: Ward
) -> None:
    query = """subscription ($id: ID!) { bedAvailability(dispensaryId: $id) { kind changes { bed {
      currentAssignment { stay { patient { familyName } } } } } } }"""
    colleague = await ward.make.actor(doctor_of=(ward.place,))
    quiet = await ward.make.actor(dispatcher_of=(ward.place,))
    async with (
        running(settings) as [server],
        Socket.open(server, token(ward.doctor)) as one,
        Socket.open(server, token(colleague)) as other,
        Socket.open(server, token(quiet)) as third,
    ):
        for watcher in (one, other):
            await watcher.acknowledged()
            await watcher.subscribe("1", query, id=gid("Dispensary", ward.place))
            await watcher.event("1")
        await third.acknowledged()
        await third.subscribe(
            "1",
            "subscription ($id: ID!) { bedAvailability(dispensaryId: $id) { kind } }",
            id=gid("Dispensary", ward.place),
        )
        await third.event("1")
        await happen(database, ward.place, ward.beds[0])
        for watcher in (one, other, third):
            event = await watcher.event("1")
            assert event["kind"] == "CHANGE"

    noted = [(entry["account_id"], entry["field"], entry["whom"]) for entry in await ward.reads()]
    assert sorted(noted) == sorted(
        (account.account_id, "bedAvailability", [ward.patients[0].id]) for account in (ward.doctor, colleague)
    )


async def test_who_checks_a_certificate_and_who_fetches_it_stands_in_the_log(
    client: Client, ward: Ward
) -> None:
    await client.mutate(
        "stayCheckOut",
        "... on Stay { id }",
        {
            "id": gid("Stay", ward.stays[0]),
            "version": 1,
            "outcome": "DISCHARGED",
            "certificate": {"language": "ru"},
        },
        ward.doctor,
    )
    found = await client.data(
        "{ certificates { edges { node { downloadUrl verificationCode } } } }", ward.doctor
    )
    paper = found["certificates"]["edges"][0]["node"]
    await client.data(
        "query ($code: String!) { certificateVerification(code: $code) { number } }",
        code=paper["verificationCode"],
    )
    fetched = await client.http.get(urlsplit(paper["downloadUrl"]).path)

    assert fetched.status_code == 200
    rows = await ward.make.database.fetch(
        "SELECT action, field, account_id, patient_id FROM access_entry "
        "WHERE field = 'certificateVerification' OR action = 'certificate_download' ORDER BY id"
    )
    assert [tuple(row) for row in rows] == [
        ("read", "certificateVerification", None, ward.patients[0].id),
        ("certificate_download", None, None, ward.patients[0].id),
    ]


async def test_a_patient_reads_who_has_read_their_record_and_nobody_elses(client: Client, ward: Ward) -> None:
    await client.data(BOARD, ward.doctor, id=gid("Dispensary", ward.place))
    await client.data(
        "query ($p: ID!) { patient(id: $p) { id } }", ward.doctor, p=gid("Patient", ward.patients[1])
    )
    await client.data("{ me { patient { familyName } } }", ward.patient)

    own = await client.data(LOG, ward.patient)
    others = await client.data(LOG, ward.patient, where={"byOthers": True})
    colleagues = await client.data(LOG, ward.doctor)
    by_record = await client.data(
        "{ me { patient { accessEntries(where: {byOthers: true}) { totalCount } } } }", ward.patient
    )

    seen = [edge["node"] for edge in own["accessEntries"]["edges"]]
    assert [entry["field"] for entry in seen] == ["me", "dispensary"]
    [entry] = [edge["node"] for edge in others["accessEntries"]["edges"]]
    assert entry == {
        "action": "read",
        "field": "dispensary",
        "role": "DOCTOR",
        "patientCount": 3,
        "account": {"name": "Иванова Анна"},
        "dispensary": {"name": ward.place.name},
    }
    assert colleagues["accessEntries"]["edges"] == []
    assert by_record["me"]["patient"]["accessEntries"]["totalCount"] == 1


async def test_the_superadministrator_searches_all_of_it(client: Client, ward: Ward) -> None:
    await client.data(BOARD, ward.doctor, id=gid("Dispensary", ward.place))
    await client.data(BOARD, ward.admin, id=gid("Dispensary", ward.place))

    async def found(**where: Any) -> list[str]:
        data = await client.data(
            """query ($where: AccessEntryWhere) { accessEntries(where: $where, orderBy: [{field: AT, direction: ASC}])
            { edges { node { role requestId address } } } }""",
            ward.admin,
            where=where,
        )
        return [edge["node"]["role"] for edge in data["accessEntries"]["edges"]]

    assert await found(action="read") == ["DOCTOR", "SUPERADMIN"]
    assert await found(accountId=gid("Account", ward.doctor.account_id)) == ["DOCTOR"]
    assert await found(patientId=gid("Patient", ward.patients[2])) == ["DOCTOR", "SUPERADMIN"]
    assert await found(patientId=gid("Patient", ward.patients[2]), role="SUPERADMIN") == ["SUPERADMIN"]
    assert await found(dispensaryId=gid("Dispensary", ward.place)) == ["DOCTOR"]
    assert await found(until="2020-01-01T00:00:00Z") == []


async def test_nothing_is_shown_that_cannot_be_written_down(
    client: Client, owned: Database, ward: Ward
) -> None:
    await owned.fetch(f"REVOKE INSERT ON access_entry FROM {SERVER_ROLE}")

    answer = await client.post(BOARD, ward.doctor, id=gid("Dispensary", ward.place))
    await owned.fetch(f"GRANT INSERT ON access_entry TO {SERVER_ROLE}")
    again = await client.post(BOARD, ward.doctor, id=gid("Dispensary", ward.place))

    assert answer.get("data") is None
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["INTERNAL"]
    assert "errors" not in again
    assert len(await ward.reads()) == 1


async def test_many_reads_at_once_are_each_noted_and_their_set_is_kept_once(
    client: Client, database: Database, ward: Ward
) -> None:
    await asyncio.gather(
        *(client.data(BOARD, ward.doctor, id=gid("Dispensary", ward.place)) for _ in range(50))
    )

    assert [len(entry["whom"]) for entry in await ward.reads()] == [3] * 50
    assert await database.fetch_value("SELECT count(*) FROM access_set") == 1


@pytest.mark.parametrize("role", [SERVER_ROLE, WARD_ROLE])
@pytest.mark.parametrize(
    "rewriting",
    [
        "UPDATE access_entry SET account_id = NULL",
        "DELETE FROM access_entry",
        "TRUNCATE access_entry",
        "UPDATE access_set SET patients = '{}'",
        "DELETE FROM access_set",
        "UPDATE access_seal SET size = 0",
        "DELETE FROM access_seal",
    ],
)
async def test_no_role_of_the_software_may_rewrite_the_log(
    database_url: str, settings: Settings, role: str, rewriting: str
) -> None:
    async with Database(database_url, settings, role=role) as software:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await software.fetch(rewriting)


_TAMPERING = {
    "an entry altered": "UPDATE access_entry SET role = 'USER' WHERE id = (SELECT min(id) FROM access_entry)",
    "an entry removed": "DELETE FROM access_entry WHERE id = (SELECT max(id) FROM access_entry)",
    "a set altered": "UPDATE access_set SET patients = patients[2:]",
    "a seal removed": "DELETE FROM access_seal WHERE number = 1",
    "a seal altered": "UPDATE access_seal SET digest = sha256('') WHERE number = 1",
    "an entry slipped in": (
        "INSERT INTO access_entry (id, at, action) OVERRIDING SYSTEM VALUE "
        "VALUES (-5, now() - interval '1 hour', 'read')"
    ),
}


@pytest.mark.parametrize("what", _TAMPERING)
async def test_what_was_rewritten_by_the_tables_owner_is_found(
    client: Client, database: Database, owned: Database, ward: Ward, what: str
) -> None:
    for _ in range(3):
        await client.data(BOARD, ward.doctor, id=gid("Dispensary", ward.place))
        async with client.services.database.transaction(ward=NETWORK) as session:
            sealed = await seals.seal(session)
    async with client.services.database.transaction(ward=NETWORK) as session:
        assert await seals.seal(session) is None
    assert sealed is not None
    before = await seals.inspect(database)
    finding = checkup._access_log(before)
    assert before.whole, before
    assert before.last == sealed
    assert sealed.digest in finding.what

    for table in ("access_entry", "access_set", "access_seal"):
        await owned.fetch(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    await owned.fetch(_TAMPERING[what])
    after = await seals.inspect(database)

    assert not after.whole, what
    assert "not whole" in checkup._access_log(after).what


async def test_entries_that_are_committed_out_of_order_are_sealed_all_the_same(
    database: Database, client: Client, make: Factory
) -> None:
    entry = "INSERT INTO access_entry (action) VALUES ('{}')"
    server = client.services.database

    async def seal() -> int:
        async with server.transaction(ward=NETWORK) as session:
            made = await seals.seal(session)
            return made.size if made else 0

    async with server.transaction() as slow:
        await (await slow.connection()).exec_driver_sql(entry.format("slow"))
        await server.fetch(entry.format("quick"))
        first = await seal()
    second = await seal()

    assert (first, second) == (1, 1)
    assert (await seals.inspect(database)).whole


def test_every_type_of_somebodys_record_says_whose_it_is(client: Client) -> None:
    schema = client.app.state.schema._schema
    silent = set()
    for name, decl in TYPES.items():
        if decl.source in CLINICAL and decl.person is None:
            assert isinstance(schema.type_map[name], GraphQLObjectType)
            silent.add(name)

    # A reservation is a bed's; for whom is the patient's own row. The others are parts of rows that say it.
    assert silent == {"AccessEntry", "CertificateDuplicate", "Reservation", "StayRevision"}
