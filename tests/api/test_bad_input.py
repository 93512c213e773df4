"""Bad input gets a clear, named answer; so does a database that is not there."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from ekoyka import embedded
from ekoyka.database import Database
from ekoyka.settings import Mode, Settings
from tests.client import Client, gid
from tests.factories import Factory
from tests.servers import ready, start

LONG = "Я" * 10_000


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("", "BAD_REQUEST"),
        ("\x00", "GRAPHQL_PARSE_FAILED"),
        ("{ nope }", "GRAPHQL_VALIDATION_FAILED"),
        ("{ me { nope } }", "GRAPHQL_VALIDATION_FAILED"),
        ("{ me }", "GRAPHQL_VALIDATION_FAILED"),
        ("{ bed { label } }", "GRAPHQL_VALIDATION_FAILED"),
        ("query ($x: ID!) { bed(id: $x) { label } }", "BAD_USER_INPUT"),
        ('{ bed(id: "nonsense") { label } }', "BAD_USER_INPUT"),
        ('{ bed(id: "") { label } }', "BAD_USER_INPUT"),
        ('{ bed(id: "😀") { label } }', "BAD_USER_INPUT"),
        ("{ bed(id: 99999999999999999999999999) { label } }", "BAD_USER_INPUT"),
        ('{ node(id: "QmVkOjk5OTk5OTk5OTk5OTk5OTk5OTk=") { id } }', "BAD_USER_INPUT"),
        ('{ node(id: "Tm90aGluZzox") { id } }', None),
        ('{ patients(where: {birthDate: "2026-02-31"}) { totalCount } }', "BAD_USER_INPUT"),
        ('{ patients(where: {birthDate: "31.01.2026"}) { totalCount } }', "BAD_USER_INPUT"),
        ('{ stays(where: {from: "2026-01-01T00:00:00"}) { totalCount } }', "BAD_USER_INPUT"),
        ('{ stays(where: {from: "0001-01-01T00:00:00+14:00"}) { totalCount } }', "BAD_USER_INPUT"),
        ('{ stays(where: {until: "yesterday"}) { totalCount } }', "BAD_USER_INPUT"),
        ('{ patients(where: {search: "!!!"}) { totalCount } }', "BAD_USER_INPUT"),
        ('{ patients(where: {recordNumber: "\\u0000"}) { totalCount } }', "BAD_USER_INPUT"),
        ('{ patients(where: {recordNumber: "😀"}) { totalCount } }', None),
        (f'{{ patients(where: {{search: "{LONG}"}}) {{ totalCount }} }}', None),
        ("{ beds(first: -5) { totalCount } }", "BAD_USER_INPUT"),
        ("{ beds(first: 2147483648) { totalCount } }", "GRAPHQL_VALIDATION_FAILED"),
        ("{ beds(orderBy: [{field: LABEL, direction: UP}]) { totalCount } }", "GRAPHQL_VALIDATION_FAILED"),
        (
            "{ beds(orderBy: [{field: LABEL, direction: ASC}, {field: LABEL, direction: ASC}]) { totalCount } }",
            "BAD_USER_INPUT",
        ),
        ("query A { me { id } } query B { me { id } }", "BAD_USER_INPUT"),
        ("subscription { bedAvailability(dispensaryId: 1) { kind } }", "BAD_REQUEST"),
        ("fragment F on Bed { label }", "BAD_REQUEST"),
    ],
)
async def test_a_bad_document_has_a_named_answer(
    client: Client, make: Factory, document: str, code: str | None
) -> None:
    admin = await make.actor(superadmin=True)

    codes = await client.codes(document, admin)

    assert (codes[0] if codes else None) == code


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"familyName": ""}, ["familyName"]),
        ({"familyName": "   "}, ["familyName"]),
        ({"familyName": LONG}, ["familyName"]),
        ({"familyName": "а\x00б"}, ["familyName"]),
        ({"familyName": "а\nб"}, ["familyName"]),
        ({"givenName": "\x7f"}, ["givenName"]),
        ({"familyName": None}, []),
        ({"codeName": "Берёза"}, []),
        ({"recordNumber": "x" * 41}, ["recordNumber"]),
        ({"birthDate": "2999-01-01"}, ["birthDate"]),
        ({"birthDate": "1700-01-01"}, ["birthDate"]),
    ],
)
async def test_a_bad_field_is_refused_by_its_name(
    client: Client, make: Factory, changes: dict[str, Any], path: list[str]
) -> None:
    place = await make.dispensary()
    usual = {
        "dispensaryId": gid("Dispensary", place),
        "recordNumber": "1",
        "sex": "MALE",
        "familyName": "Иванов",
        "givenName": "Иван",
    }

    result = await client.mutate(
        "patientRegister",
        "... on Patient { id }",
        {**usual, **changes},
        await make.actor(doctor_of=(place,)),
    )

    assert (result["__typename"], result["path"] or []) == ("Invalid", path)


async def test_emoji_and_the_longest_names_are_kept_as_they_are(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    names = {"familyName": "Ж" * 100, "givenName": "😀 О’Нил-Ёж"}

    result = await client.mutate(
        "patientRegister",
        "... on Patient { familyName givenName }",
        {"dispensaryId": gid("Dispensary", place), "recordNumber": "1", "sex": "MALE", **names},
        doctor,
    )

    assert {name: result[name] for name in names} == names


async def test_ids_of_other_types_and_unknown_rows_in_inputs_are_refused_by_name(
    client: Client, make: Factory
) -> None:
    place = await make.dispensary()
    bed, patient = await make.bed(place), await make.patient(place)
    doctor = await make.actor(doctor_of=(place,))

    async def check_in(patient_id: str, bed_id: str) -> tuple[str, list[str]]:
        result = await client.mutate(
            "stayCheckIn", "... on Stay { id }", {"patientId": patient_id, "bedId": bed_id}, doctor
        )
        return result["__typename"], result.get("path", [])

    assert await check_in(gid("Bed", bed), gid("Bed", bed)) == ("Invalid", ["patientId"])
    assert await check_in(gid("Patient", patient), "?") == ("Invalid", ["bedId"])
    assert await check_in(gid("Patient", patient), gid("Bed", 10**15)) == ("NotFound", ["bedId"])
    assert await check_in(gid("Patient", 10**15), gid("Bed", bed)) == ("NotFound", ["patientId"])


async def test_bad_requests_are_answered_in_json_without_a_500(client: Client) -> None:
    post = client.http.post
    answers = {
        "text": await post("/graphql", content="hello", headers={"content-type": "text/plain"}),
        "not json": await post("/graphql", content=b"{", headers={"content-type": "application/json"}),
        "not utf-8": await post("/graphql", content=b"\xff", headers={"content-type": "application/json"}),
        "null": await post(
            "/graphql", json=None, headers={"content-type": "application/json"}, content=b"null"
        ),
        "batch": await post("/graphql", json=[{"query": "{ me { id } }"}]),
        "no query": await post("/graphql", json={}),
        "variables": await post("/graphql", json={"query": "{ me { id } }", "variables": []}),
        "name": await post("/graphql", json={"query": "{ me { id } }", "operationName": 5}),
        "huge": await post("/graphql", json={"query": "#" * 300_000}),
        "token": await post(
            "/graphql", json={"query": "{ me { id } }"}, headers={"authorization": "Bearer x"}
        ),
        "scheme": await post(
            "/graphql", json={"query": "{ me { id } }"}, headers={"authorization": "Basic x"}
        ),
        "get": await client.http.get("/graphql?query={me{id}}"),
        "nowhere": await client.http.get("/nowhere"),
    }

    statuses = {name: answer.status_code for name, answer in answers.items()}
    assert statuses == {
        "text": 415,
        "not json": 400,
        "not utf-8": 400,
        "null": 400,
        "batch": 400,
        "no query": 400,
        "variables": 400,
        "name": 400,
        "huge": 413,
        "token": 401,
        "scheme": 401,
        "get": 405,
        "nowhere": 404,
    }
    assert answers["token"].json()["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"


JSON = "application/json"
QUERY = b'{"query": "{ me { id } }"'


@pytest.mark.parametrize(
    ("body", "fields", "status"),
    [
        (b"null", {}, 400),
        (b"true", {}, 400),
        (b"7", {}, 400),
        (b'"{ me { id } }"', {}, 400),
        (b"[" + QUERY + b"}]", {}, 400),
        (b"[]", {}, 400),
        (b"", {}, 400),
        (b"[" * 60_000, {}, 400),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, {}, 400),
        (QUERY + b', "variables": ' + b'{"a":' * 900 + b"1" + b"}" * 901, {}, 200),
        (QUERY + b', "variables": {"n": ' + b"9" * 5000 + b"}}", {}, 400),
        (QUERY + b', "variables": {"n": 1e99999}}', {}, 400),
        (QUERY + b', "variables": {"n": NaN}}', {}, 400),
        (QUERY + b', "variables": "\xff"}', {}, 400),
        (QUERY + b', "variables": "\\ud800"}', {}, 400),
        (QUERY + b', "operationName": "' + b"x" * 60_000 + b'"}', {}, 200),
        (QUERY.replace(b"id", b"\\ud800"), {}, 400),
        (b"\xef\xbb\xbf" + QUERY + b"}", {}, 400),
        ("{}".encode("utf-16"), {}, 400),
        (QUERY + b"}", {"content-encoding": "gzip"}, 415),
        (QUERY + b"}", {"content-encoding": "br, identity"}, 415),
        (QUERY + b"}", {"content-type": "application/json; charset=utf-16"}, 415),
        (QUERY + b"}", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (QUERY + b"}", {"content-type": "application/graphql"}, 415),
        (QUERY + b"}", {"content-type": ""}, 415),
        (QUERY + b', "documentId": 7}', {}, 400),
        (b'{"documentId": "sha256:' + b"0" * 64 + b'"}', {}, 400),
        (b'{"documentId": "' + b"0" * 60_000 + b'"}', {}, 400),
        (b'{"query": 7}', {}, 400),
        (b'{"query": ["{ me { id } }"]}', {}, 400),
    ],
)
async def test_a_hostile_body_has_a_named_answer(
    client: Client, make: Factory, body: bytes, fields: dict[str, str], status: int
) -> None:
    token = client.token(await make.actor(superadmin=True))

    answer = await client.http.post(
        "/graphql",
        content=body,
        headers={"content-type": JSON, "authorization": f"Bearer {token}", **fields},
    )

    errors = answer.json().get("errors", [])
    assert answer.status_code == status, answer.text
    assert bool(errors) or status == 200
    assert all(error["extensions"]["code"] != "INTERNAL" and len(error["message"]) < 300 for error in errors)


async def test_what_went_wrong_unexpectedly_is_masked_and_never_shown(
    client: Client, owned: Database, make: Factory
) -> None:
    admin = await make.actor(superadmin=True)
    await owned.fetch("ALTER TABLE account RENAME COLUMN position TO secret_position")

    with capture_logs() as logs:
        answer = await client.post("{ me { name position } }", admin)

    [error] = answer["errors"]
    assert error["extensions"]["code"] == "INTERNAL"
    assert error["extensions"]["requestId"]
    assert "position" not in error["message"]
    [entry] = [entry for entry in logs if entry["event"] == "operation_failed"]
    assert (entry["kind"], entry["sqlstate"]) == ("UndefinedColumnError", "42703")
    assert "position" not in str(entry)


async def test_a_database_that_is_down_is_named_and_the_server_recovers_by_itself(tmp_path: Path) -> None:
    """Down at the start, then there, then gone in the middle, then back."""
    folder = tmp_path / "pg"
    server = embedded.start(folder, durable=False)
    address = server.url()
    embedded.stop(server)
    settings = Settings(mode=Mode.PRODUCTION, database_url=address)
    query = {"query": '{ certificateVerification(code: "0123456789") { number } }'}
    process = await start(settings)
    try:
        async with httpx.AsyncClient(base_url=process.url, timeout=30) as http:
            while True:
                try:
                    down = await http.post("/graphql", json=query)
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
            assert down.status_code == 503
            assert down.json()["errors"][0]["extensions"]["code"] == "SERVICE_UNAVAILABLE"
            assert (await http.get("/healthz")).status_code == 200
            not_ready = await http.get("/readyz")
            assert (not_ready.status_code, not_ready.json()["database"]) == (503, False)

            server = _again(folder, address)
            await asyncio.wait_for(ready(process), 60)
            assert (await http.post("/graphql", json=query)).json()["data"] == {
                "certificateVerification": None
            }

            embedded.stop(server)
            gone = await http.post("/graphql", json=query)
            assert gone.status_code == 503
            assert gone.json()["errors"][0]["extensions"]["code"] == "SERVICE_UNAVAILABLE"
            signing_in = await http.post(
                "/auth/token", data={"grant_type": "password", "username": "a@b", "password": "x"}
            )
            assert signing_in.status_code == 503

            server = _again(folder, address)
            await asyncio.wait_for(ready(process), 60)
            assert (await http.post("/graphql", json=query)).status_code == 200
    finally:
        await process.stop()
        _end(server, address)


def _end(server: embedded.EmbeddedServer, address: str) -> None:
    embedded.stop(server)
    Path(address.partition("host=")[2].partition("&")[0]).unlink(missing_ok=True)


def _again(folder: Path, address: str) -> embedded.EmbeddedServer:
    """The PostgreSQL runs again, reachable under its first address."""
    server = embedded.start(folder, durable=False)
    first = Path(address.partition("host=")[2].partition("&")[0])
    if first != server.socket_dir:
        first.unlink(missing_ok=True)
        first.symlink_to(server.socket_dir)
    return server


def test_production_without_a_token_key_does_not_start_and_says_what_to_do(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EKOYKA_")}

    ended = subprocess.run(
        [sys.executable, "-m", "ekoyka", "serve"],
        env={**environment, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == 2
    assert "EKOYKA_TOKEN_KEYS" in ended.stderr
    assert "token_urlsafe" in ended.stderr
