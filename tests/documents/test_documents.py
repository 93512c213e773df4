"""Trusted documents: registering, asking by id, allowing nothing else."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from ekoyka.api.schema import build_schema
from ekoyka.database import Database
from ekoyka.documents import KEPT, Documents, forget, identify, register
from ekoyka.manifest import BadDocuments, read
from ekoyka.settings import Settings
from tests.api.test_feed import FEED
from tests.api.test_sockets import talking
from tests.client import Client, gid, serving
from tests.factories import Factory

ME = "query Me { me { id name } }"
BEDS = "query Beds { beds(first: 1) { edges { node { label } } } }"


async def _trust(database: Database, client: str, *texts: str) -> int:
    async with database.transaction() as session:
        return await register(session, client, texts)


async def _ask(client: Client, body: dict[str, Any], actor: Any = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {client.token(actor)}"} if actor else {}
    return await client.http.post("/graphql", json=body, headers=headers)


def test_an_id_is_the_hash_of_the_text() -> None:
    assert identify(ME) == "sha256:" + hashlib.sha256(ME.encode()).hexdigest()


async def test_registering_twice_changes_nothing_and_builds_do_not_lose_each_others_documents(
    database: Database,
) -> None:
    assert await _trust(database, "web-1", ME, BEDS, ME) == 2
    assert await _trust(database, "web-1", ME, BEDS) == 0
    assert await _trust(database, "web-2", ME) == 1
    assert await _trust(database, "web-3") == 0

    async with database.transaction() as session:
        assert await forget(session, "web-1") == 2

    documents = Documents(database)
    assert await documents.text(identify(ME)) == ME
    assert await documents.text(identify(BEDS)) is None


async def test_an_answer_by_id_is_the_answer_by_text_and_gives_no_one_more_rights(
    client: Client, make: Factory
) -> None:
    user = await make.actor()
    await _trust(client.services.database, "web", ME, BEDS)

    by_id = await _ask(client, {"documentId": identify(ME)}, user)

    assert by_id.content == (await _ask(client, {"query": ME}, user)).content
    forbidden = await _ask(client, {"documentId": identify(BEDS)}, user)
    assert forbidden.json()["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    unknown = await _ask(client, {"documentId": identify(ME)})
    assert unknown.json()["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"


async def test_a_document_registered_after_the_start_is_found_and_read_once(
    client: Client, make: Factory
) -> None:
    user, database = await make.actor(), client.services.database
    before = await _ask(client, {"documentId": identify(ME)}, user)
    assert before.status_code == 400
    assert before.json()["errors"][0]["extensions"]["code"] == "PERSISTED_DOCUMENT_NOT_FOUND"

    await _trust(database, "web", ME)
    assert "data" in (await _ask(client, {"documentId": identify(ME)}, user)).json()

    statements = database.statements
    await _ask(client, {"documentId": identify(ME)}, user)
    assert database.statements - statements == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"documentId": "sha256:" + "0" * 64}, 400, "PERSISTED_DOCUMENT_NOT_FOUND"),
        ({"documentId": "sha256:" + "0" * 63}, 400, "BAD_REQUEST"),
        ({"documentId": "md5:1"}, 400, "BAD_REQUEST"),
        ({"documentId": 7}, 400, "BAD_REQUEST"),
        ({"documentId": identify(ME), "query": ME}, 400, "BAD_REQUEST"),
        ({"documentId": None, "query": None}, 400, "BAD_REQUEST"),
        ({}, 400, "BAD_REQUEST"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_name(
    client: Client, body: dict[str, Any], status: int, code: str
) -> None:
    answer = await _ask(client, body)

    assert answer.status_code == status
    assert answer.json()["errors"][0]["extensions"]["code"] == code


async def test_malformed_ids_cost_no_statement_and_unknown_ones_are_not_kept(client: Client) -> None:
    documents, database = client.services.documents, client.services.database
    statements = database.statements
    await _ask(client, {"documentId": "sha256:none"})
    assert database.statements == statements

    for number in range(30):
        assert await documents.text(identify(str(number))) is None

    assert len(documents._known) == 0
    assert KEPT == 1000


async def test_where_only_trusted_documents_are_answered_a_text_is_refused(
    settings: Settings, make: Factory
) -> None:
    user = await make.actor()
    async with serving(settings.model_copy(update={"trusted_documents_only": True})) as client:
        await _trust(client.services.database, "web", ME)

        refused = await _ask(client, {"query": ME}, user)

        assert refused.status_code == 403
        assert refused.json()["errors"][0]["extensions"]["code"] == "TRUSTED_DOCUMENTS_ONLY"
        assert (await _ask(client, {"documentId": identify(ME)}, user)).json()["data"]["me"]["name"]


async def test_a_socket_takes_ids_and_where_it_must_nothing_else(
    settings: Settings, database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    await _trust(database, "web", FEED)
    variables = {"id": gid("Dispensary", place)}
    only = settings.model_copy(update={"trusted_documents_only": True})
    async with talking(only) as [talk]:
        await talk.begin(doctor)
        for key, payload in (
            ("1", {"documentId": identify(FEED), "variables": variables}),
            ("2", {"documentId": identify("unknown")}),
            ("3", {"query": FEED, "variables": variables}),
        ):
            await talk.say({"type": "subscribe", "id": key, "payload": payload})
        heard = {message["id"]: message for message in [await talk.hear() for _ in range(3)]}

    assert heard["1"]["payload"]["data"]["bedAvailability"]["kind"] == "SNAPSHOT"
    assert heard["2"]["payload"][0]["extensions"]["code"] == "PERSISTED_DOCUMENT_NOT_FOUND"
    assert heard["3"]["payload"][0]["extensions"]["code"] == "TRUSTED_DOCUMENTS_ONLY"


def test_files_manifests_and_folders_are_read_and_each_document_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "me.graphql").write_text(ME)
    (tmp_path / "deep" / "beds.gql").write_text(BEDS)
    (tmp_path / "deep" / "manifest.json").write_text(json.dumps({"whatever": ME, "b": BEDS + "\n"}))
    (tmp_path / "notes.txt").write_text("no document")

    found = read(build_schema()._schema, [tmp_path])

    assert {item.id for item in found} == {identify(ME), identify(BEDS), identify(BEDS + "\n")}
    assert {item.operations for item in found} == {"Me", "Beds"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.graphql", "query A {\n  me { nonsense }\n}", "a.graphql:2:8: Cannot query field 'nonsense'"),
        ("a.graphql", "query A {", "a.graphql:1:"),
        ("a.graphql", "fragment F on Bed { id }", "a.graphql"),
        ("a.json", "[1]", "a manifest is an object"),
        ("a.json", "{", "a.json"),
        ("a.txt", ME, "no file or folder"),
    ],
)
def test_one_bad_document_is_named_with_its_place(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / "good.graphql").write_text(ME)
    (tmp_path / name).write_text(content)

    with pytest.raises(BadDocuments) as refused:
        read(build_schema()._schema, [tmp_path / "good.graphql", tmp_path / name])

    assert said in str(refused.value)


def test_the_command_registers_lists_and_forgets(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "me.graphql").write_text(ME)
    (tmp_path / "bad.graphql").write_text("query { nothing }")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DATABASE_URL": database_url, "EKOYKA_MODE": "demo"}
        return subprocess.run(
            [sys.executable, "-m", "ekoyka", "documents", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    refused = run("register", str(tmp_path), "--client", "web-1")
    assert refused.returncode == 2
    assert "bad.graphql:1:9" in refused.stderr
    assert run("list").stdout == ""

    done = run("register", str(tmp_path / "me.graphql"), "--client", "web-1")
    assert done.returncode == 0, done.stderr
    assert f"{identify(ME)}  Me" in done.stdout
    assert run("list").stdout.split()[1:] == ["1", "web-1"]
    assert run("forget", "--client", "web-1").returncode == 0
    assert run("list").stdout == ""
