"""In production whoever is no staff learns nothing of the schema, and does not get to see the explorer."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from graphql import get_introspection_query

from ekoyka.database import DatabaseUnavailable
from ekoyka.settings import Mode, Settings
from tests.client import Browser, Client, gid, serving
from tests.factories import Factory
from tests.identity.test_sessions import PASSWORD, person


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


# The explorer

PAGE = {"accept": "text/html"}
SECRETS = ("explorer.js", "data-endpoint", "bedCounts")


async def page_of(client: Client, make: Factory, **roles: Any) -> Browser:
    """The browser of somebody with these roles, who has signed in."""
    account, page = await person(make, **roles), Browser(client)
    await page.sign_in(account.email, PASSWORD)
    return page


def is_explorer(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and "<title>EKoyka GraphiQL</title>" in answer.text


async def test_in_production_the_explorer_is_shown_to_staff_alone(closed: Client, make: Factory) -> None:
    place = await make.dispensary()
    staff = [
        await page_of(closed, make, superadmin=True),
        await page_of(closed, make, doctor_of=(place,)),
        await page_of(closed, make, dispatcher_of=(place,)),
    ]
    user, nobody = await page_of(closed, make), Browser(closed)

    for page in staff:
        assert is_explorer(await page.http.get("/graphql", headers=PAGE))
    for page, status in ((user, 403), (nobody, 200)):
        answer = await page.http.get("/graphql", headers=PAGE)
        assert answer.status_code == status
        assert not [secret for secret in SECRETS if secret in answer.text]
        assert "set-cookie" not in answer.headers


async def test_the_door_has_a_sign_in_in_both_languages_and_nothing_from_elsewhere(closed: Client) -> None:
    answer = await closed.http.get("/graphql", headers=PAGE)

    assert "Вход в ЭКойку" in answer.text
    assert "Sign in to EKoyka" in answer.text
    assert re.findall(r"""(?:src|href)=["']?(?!data:)([^"'\s>]+)""", answer.text) == []
    assert "http" not in answer.text.replace("http-equiv", "")
    policy = answer.headers["content-security-policy"]
    [nonce] = set(re.findall(r"'nonce-([\w-]+)'", policy))
    assert set(re.findall(r"<(?:script|style)\b([^>]*)>", answer.text)) == {f' nonce="{nonce}"'}
    assert "unsafe" not in policy
    again = await closed.http.get("/graphql", headers=PAGE)
    assert nonce not in again.headers["content-security-policy"]


async def test_the_door_offers_the_identity_provider_where_there_is_one(
    settings: Settings, closed: Client
) -> None:
    with_one = settings.model_copy(
        update={
            "mode": Mode.PRODUCTION,
            "token_keys": Settings(token_keys="k" * 48).token_keys,
            "oidc_issuer": "https://sso.example.org/realms/beds",
            "oidc_client_id": "ekoyka",
        }
    )
    async with serving(with_one) as client:
        offered = await client.http.get("/graphql", headers=PAGE)

    assert 'href="/auth/oidc/login"' in offered.text
    assert "sso.example.org" in offered.text
    assert "/auth/oidc" not in (await closed.http.get("/graphql", headers=PAGE)).text


@pytest.mark.parametrize("ending", ["blocked", "ended", "another role", "forged", "bearer"])
async def test_the_door_is_closed_at_once(closed: Client, make: Factory, ending: str) -> None:
    account, page = await person(make, superadmin=True), Browser(closed)
    boss = await make.actor(superadmin=True)
    await page.sign_in(account.email, PASSWORD)
    headers = dict(PAGE)
    match ending:
        case "blocked":
            await closed.mutate("accountBlock", "", {"id": gid("Account", account)}, boss)
        case "ended":
            await page.data("mutation { signOutEverywhere(input: {}) { __typename } }")
        case "another role":
            order = {"accountId": gid("Account", account), "role": "SUPERADMIN"}
            await closed.mutate("roleRevoke", "", order, boss)
        case "forged":
            page.put("access", str(page.cookie("access"))[:-4] + "AAAA")
        case "bearer":  # which no navigation of a browser carries
            page.http.cookies.clear()
            headers["authorization"] = f"Bearer {closed.token(boss)}"

    answer = await page.http.get("/graphql", headers=headers)

    assert (answer.status_code, is_explorer(answer)) == (200, False)


async def test_a_demonstrations_explorer_is_open(client: Client) -> None:
    answer = await client.http.get("/graphql", headers=PAGE)

    assert is_explorer(answer) or "make assets" in answer.text


async def test_a_database_that_is_away_is_named_at_the_door(
    closed: Client, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = await page_of(closed, make, superadmin=True)

    async def away(*_: Any) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(closed.services.database, "fetch_value", away)
    answer = await page.http.get("/graphql", headers=PAGE)

    assert (answer.status_code, "SERVICE_UNAVAILABLE" in answer.text) == (503, True)
