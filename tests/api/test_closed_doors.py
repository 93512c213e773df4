"""In production whoever is no staff learns nothing of the schema."""

from collections.abc import AsyncIterator

import pytest
from graphql import get_introspection_query

from ekoyka.settings import Mode, Settings
from tests.client import Client, serving
from tests.factories import Factory


@pytest.fixture
async def closed(settings: Settings) -> AsyncIterator[Client]:
    """A server in production."""
    production = settings.model_copy(
        update={"mode": Mode.PRODUCTION, "token_keys": Settings(token_keys="k" * 48).token_keys}
    )
    async with serving(production) as client:
        yield client


QUESTIONS = (
    get_introspection_query(),
    '{ __type(name: "Patient") { name } }',
    "{ ...all } fragment all on Query { __schema { types { name } } }",
)


@pytest.mark.parametrize("query", QUESTIONS)
async def test_introspection_is_for_staff(closed: Client, make: Factory, query: str) -> None:
    place = await make.dispensary()
    before = closed.services.database.statements

    assert await closed.codes(query) == ["UNAUTHENTICATED"]
    assert await closed.codes(query, await make.actor()) == ["FORBIDDEN"]
    assert closed.services.database.statements == before
    for actor in (await make.actor(dispatcher_of=(place,)), await make.actor(superadmin=True)):
        assert await closed.codes(query, actor) == []


async def test_the_type_of_an_answer_may_be_asked_by_anybody(closed: Client) -> None:
    assert await closed.data("{ __typename }") == {"__typename": "Query"}


@pytest.mark.parametrize(
    "query", ["{ patientz { id } }", "{ patients(wher: 1) { id } }", "{ me { emial } nope }"]
)
async def test_a_wrong_document_tells_who_is_no_staff_nothing_of_the_schema(
    closed: Client, make: Factory, query: str
) -> None:
    for actor in (None, await make.actor()):
        answer = await closed.post(query, actor)
        assert answer["errors"] == [
            {
                "message": "The document does not fit the schema.",
                "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"},
            }
        ]


async def test_staff_is_told_what_is_wrong_without_suggestions(closed: Client, make: Factory) -> None:
    answer = await closed.post("{ patientz { id } }", await make.actor(superadmin=True))

    [error] = answer["errors"]
    assert error["message"] == "Cannot query field 'patientz' on type 'Query'."
