"""Who may have an account, and who learns that somebody has one: presence among these people is itself secret."""

import asyncio
from typing import Any

import pytest

from ekoyka.database import Database
from ekoyka.identity import limits
from ekoyka.settings import Settings
from tests.client import Client, serving
from tests.factories import Factory

PASSWORD = "a long enough password"
REGISTER = """mutation ($e: String!, $p: String!) { register(input: {email: $e, password: $p, name: "Анна"}) {
  __typename ... on Refusal { code } } }"""


async def registers(client: Client, email: str) -> str:
    """The name of the type, or the code of the error, that a registration is answered with."""
    answer = await client.post(REGISTER, e=email, p=PASSWORD)
    if "errors" in answer:
        return str(answer["errors"][0]["extensions"]["code"])
    return str(answer["data"]["register"]["__typename"])


async def passes(client: Client, seconds: float) -> None:
    await client.services.database.fetch(
        "UPDATE rate SET at = at - make_interval(secs => $1), until = until - make_interval(secs => $1)",
        seconds,
    )


async def test_after_three_addresses_that_are_taken_nobody_there_learns_of_another_for_a_while(
    client: Client, make: Factory
) -> None:
    """A free address is then answered like one that is taken: the answer tells nothing."""
    taken = [(await make.account()).email for _ in range(5)]

    told = [await registers(client, email) for email in taken[:3]]
    silent = [await registers(client, email) for email in (taken[3], "nobody@example.org")]
    await passes(client, 61)
    later = [
        await registers(client, email) for email in ("nobody@example.org", taken[4], "anybody@example.org")
    ]

    assert told == ["EmailTaken"] * 3
    assert silent == ["RATE_LIMITED"] * 2
    assert later == ["Tokens", "EmailTaken", "RATE_LIMITED"]


async def test_those_who_register_themselves_are_not_held_up_by_it(client: Client) -> None:
    assert [await registers(client, f"a{number}@example.org") for number in range(10)] == ["Tokens"] * 10


async def test_in_all_no_more_are_told_of_in_an_hour_than_the_bound(client: Client, make: Factory) -> None:
    *_, everybody = limits.taken(None, told=True)
    account = await make.account()
    for _ in range(everybody.free):
        await client.services.database.fetch("DELETE FROM rate WHERE free = 3 OR free = 30")
        assert await registers(client, account.email) == "EmailTaken"
    await client.services.database.fetch("DELETE FROM rate WHERE free = 3 OR free = 30")

    assert await registers(client, "nobody@example.org") == "RATE_LIMITED"


async def test_registrations_have_rates_by_address_and_in_all(client: Client) -> None:
    place, everybody = limits.registration("127.0.0.1")
    codes = [await registers(client, f"b{number}@example.org") for number in range(place.free + 1)]

    assert codes == ["Tokens"] * 30 + ["RATE_LIMITED"]
    assert everybody.free > place.free


@pytest.fixture
def closed(settings: Settings) -> Settings:
    """A server on which nobody registers."""
    return settings.model_copy(update={"registration_open": False})


async def test_where_registration_is_closed_it_says_the_same_of_every_address(
    closed: Settings, make: Factory
) -> None:
    account = await make.account()
    async with serving(closed) as client:
        answers = [
            await client.post(REGISTER, e=email, p=password)
            for email in (account.email, "nobody@example.org", "no address")
            for password in (PASSWORD, "short")
        ]

    assert answers[0]["data"] == {
        "register": {"__typename": "RegistrationClosed", "code": "REGISTRATION_CLOSED"}
    }
    assert all(answer == answers[0] for answer in answers)


async def create(client: Client, actor: Any, **input: Any) -> dict[str, Any]:
    return await client.mutate(
        "accountCreate",
        "... on PasswordResetCode { resetCode expiresAt }",
        {"email": "olga@example.org", "name": "Ольга", **input},
        actor,
    )


async def test_an_administrator_makes_an_account_and_its_holder_sets_the_password(
    closed: Settings, make: Factory, database: Database
) -> None:
    boss = await make.actor(superadmin=True)
    async with serving(closed) as client:
        made = await create(client, boss, position="Медсестра")
        early = await client.mutate("signIn", "", {"email": "olga@example.org", "password": "-"})
        done = await client.mutate(
            "passwordReset",
            "... on Tokens { account { name } }",
            {"code": made["resetCode"], "newPassword": PASSWORD},
        )
        late = await client.mutate("signIn", "", {"email": "olga@example.org", "password": PASSWORD})

    assert early["code"] == "CREDENTIALS_WRONG"
    assert done["account"] == {"name": "Ольга"}
    assert late["__typename"] == "Tokens"
    noted = await database.fetch("SELECT action FROM access_entry WHERE account_id = $1", boss.account_id)
    assert [row["action"] for row in noted] == ["account_create", "password_reset_allow"]


@pytest.mark.parametrize(
    ("input", "code", "path"),
    [
        ({"email": "no address"}, "INVALID_INPUT", ["email"]),
        ({"name": ""}, "INVALID_INPUT", ["name"]),
        ({"language": "de"}, "INVALID_INPUT", ["language"]),
    ],
)
async def test_an_account_of_nobody_is_refused_by_its_field(
    client: Client, make: Factory, input: dict[str, str], code: str, path: list[str]
) -> None:
    refused = await create(client, await make.actor(superadmin=True), **input)

    assert (refused["code"], refused["path"]) == (code, path)


async def test_one_of_two_accounts_of_one_address_is_made(client: Client, make: Factory) -> None:
    boss = await make.actor(superadmin=True)

    made = await asyncio.gather(*(create(client, boss) for _ in range(2)))

    assert sorted(item["__typename"] for item in made) == ["EmailTaken", "PasswordResetCode"]
