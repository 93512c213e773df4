"""How answers travel: compressed where it is asked for and pays, the same either way."""

import gzip

import pytest

from tests.client import Client, gid
from tests.factories import Factory

LONG = "query ($id: ID!) { dispensary(id: $id) { beds(first: 100) { edges { node { id label profile status } } } } }"


@pytest.mark.parametrize(
    ("accepts", "compressed"),
    [
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("identity", False),
        ("br", False),
        ("", False),
    ],
)
async def test_long_answers_are_compressed_for_those_who_take_it(
    client: Client, make: Factory, accepts: str, compressed: bool
) -> None:
    place = await make.dispensary()
    room = await make.room(place)
    for _ in range(60):
        await make.bed(place, room)
    actor = await make.actor(doctor_of=(place,))
    headers = {"authorization": f"Bearer {client.token(actor)}", "accept-encoding": accepts}
    request = {"query": LONG, "variables": {"id": gid("Dispensary", place)}}

    async with client.http.stream("POST", "/graphql", json=request, headers=headers) as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])

    assert (answer.headers.get("content-encoding") == "gzip") is compressed
    assert answer.headers["vary"] == "accept-encoding"
    assert int(answer.headers["content-length"]) == len(raw)
    plain = gzip.decompress(raw) if compressed else raw
    assert plain == (await client.http.post("/graphql", json=request, headers=headers)).content
    assert plain.count(b'"label"') == 60
    assert not compressed or len(raw) < len(plain) / 4


async def test_short_answers_and_changes_are_never_compressed(client: Client, make: Factory) -> None:
    actor = await make.actor()
    headers = {"authorization": f"Bearer {client.token(actor)}", "accept-encoding": "gzip"}

    for document in (
        "{ me { id } }",
        'mutation { signIn(input: {email: "a@b.example", password: "'
        + "x" * 5000
        + '"}) { __typename ... on Refusal { message } } }',
    ):
        answer = await client.http.post("/graphql", json={"query": document}, headers=headers)
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers


async def test_no_answer_of_the_graph_bears_an_etag(client: Client) -> None:
    answer = await client.http.post("/graphql", json={"query": "{ __typename }"})

    assert "etag" not in answer.headers


async def test_a_document_never_seen_before_is_planned_once(client: Client, make: Factory) -> None:
    actor = await make.actor()
    planner = client.services.planner
    documents, plans = planner.documents.misses, planner.plans.misses

    for _ in range(3):
        await client.data("query Unseen { me { name email } }", actor)

    assert planner.documents.misses - documents == 1
    assert planner.plans.misses - plans == 1


async def test_a_hostile_stream_of_new_documents_does_not_make_the_useful_ones_new(
    client: Client, make: Factory
) -> None:
    actor = await make.actor()
    planner = client.services.planner
    useful = "query Useful { me { name } }"
    for _ in range(2):
        await client.data(useful, actor)

    for number in range(1500):
        planner.document(f"query Hostile{number} {{ __typename }}")
    before = planner.documents.misses
    await client.data(useful, actor)

    assert planner.documents.misses == before
    assert len(planner.documents) <= 1000


async def test_documents_beyond_all_use_are_answered_but_not_kept(client: Client, make: Factory) -> None:
    actor = await make.actor()
    document = "query Long { me { name } }" + " " * 30_000
    kept = len(client.services.planner.documents), len(client.services.planner.plans)

    data = await client.data(document, actor)

    assert data["me"]["name"]
    assert (len(client.services.planner.documents), len(client.services.planner.plans)) == kept
