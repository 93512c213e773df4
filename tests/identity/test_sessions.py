"""Sessions as their holders and administrators see and end them; OAuth clients; new passwords by leave."""

import asyncio
from typing import Any

import bcrypt
import pytest
from structlog.testing import capture_logs

from ekoyka.database import Database
from ekoyka.errors import NotFound
from ekoyka.identity import sessions
from ekoyka.identity.sessions import Origin, ResetCodeWrong, SignedIn
from ekoyka.identity.tables import Account
from tests.client import Client, gid
from tests.factories import Factory
from tests.identity.transactions import answer, run

PASSWORD = "a long enough password"
HOME, CAFE = Origin("192.0.2.1", "Firefox"), Origin("198.51.100.7", "curl")


async def opened(database: Database, account: Account, origin: Origin = HOME) -> SignedIn:
    signed_in: SignedIn = await run(
        database,
        sessions.open_session,
        account_id=account.id,
        password_hash=account.password_hash,
        ttl_s=3600,
        origin=origin,
    )
    return signed_in


async def person(make: Factory, **values: Any) -> Account:
    """Somebody who can really sign in."""
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    return await make.account(password_hash=hashed, **values)


async def noted(database: Database, account: Account) -> list[str]:
    rows = await database.fetch(
        "SELECT action FROM access_entry WHERE account_id = $1 ORDER BY id", account.id
    )
    return [row["action"] for row in rows]


# Refreshing


async def test_one_of_fifty_uses_of_a_refresh_token_succeeds_and_the_family_is_ended(
    database: Database, make: Factory
) -> None:
    account = await make.account()
    first = await opened(database, account)

    with capture_logs() as logs:
        answers = await asyncio.gather(
            *(run(database, sessions.refresh, first.refresh_token) for _ in range(50))
        )

    given = [item for item in answers if item is not None]
    assert len(given) == 1
    assert await run(database, sessions.refresh, given[0].refresh_token) is None
    assert "refresh_token_reuse" in await noted(database, account)
    assert [line["event"] for line in logs] == ["refresh_token_reused"]
    assert first.refresh_token not in str(logs)


async def test_another_network_address_is_noted_and_the_session_goes_on(
    database: Database, make: Factory
) -> None:
    account = await make.account()
    first = await opened(database, account)

    second = await run(database, sessions.refresh, first.refresh_token, origin=CAFE)

    assert second is not None
    assert await noted(database, account) == ["session_address_change"]
    row = (await database.fetch("SELECT address, client FROM session"))[0]
    assert tuple(row) == (CAFE.address, CAFE.client)


async def test_another_network_address_is_refused_where_the_setting_says_so(
    database: Database, make: Factory
) -> None:
    first = await opened(database, await make.account())

    stolen = await run(database, sessions.refresh, first.refresh_token, origin=CAFE, same_address=True)
    rightful = await run(database, sessions.refresh, first.refresh_token, origin=HOME, same_address=True)

    assert stolen is None
    assert rightful is not None


# Seeing and ending


async def signed_in(client: Client, account: Account) -> dict[str, Any]:
    """The tokens of a sign-in over HTTP."""
    return await client.mutate(
        "signIn",
        "... on Tokens { accessToken refreshToken }",
        {"email": account.email, "password": PASSWORD},
    )


async def ask(client: Client, token: str, query: str, **variables: Any) -> Any:
    answer = await client.http.post(
        "/graphql",
        json={"query": query, "variables": variables},
        headers={"authorization": f"Bearer {token}", "user-agent": "Ward 1.0"},
    )
    return answer.json()


async def test_everybody_sees_their_open_sessions_and_which_one_asks(client: Client, make: Factory) -> None:
    account = await person(make)
    first, second = await signed_in(client, account), await signed_in(client, account)

    seen = await ask(
        client, second["accessToken"], "{ me { sessions { id current address client endedAt } } }"
    )

    listed = seen["data"]["me"]["sessions"]
    assert [item["current"] for item in listed] == [True, False]
    assert {item["address"] for item in listed} == {"127.0.0.1"}
    assert all(item["client"].startswith("python-httpx") for item in listed)
    assert first["refreshToken"] not in str(seen)


async def test_ending_one_session_ends_its_tokens_at_once_and_the_others_renew_theirs(
    client: Client, make: Factory
) -> None:
    account = await person(make)
    lost, kept = await signed_in(client, account), await signed_in(client, account)
    listed = await ask(client, kept["accessToken"], "{ me { sessions { id current } } }")
    [lost_id] = [item["id"] for item in listed["data"]["me"]["sessions"] if not item["current"]]

    ended = await ask(
        client,
        kept["accessToken"],
        "mutation ($id: ID!) { sessionEnd(input: {id: $id}) { ... on Session { endedAt } } }",
        id=lost_id,
    )

    assert ended["data"]["sessionEnd"]["endedAt"] is not None
    assert (await ask(client, lost["accessToken"], "{ me { id } }"))["errors"][0]["extensions"]["code"] == (
        "UNAUTHENTICATED"
    )
    refused = await client.mutate("tokenRefresh", "", {"refreshToken": lost["refreshToken"]})
    renewed = await client.mutate(
        "tokenRefresh", "... on Tokens { accessToken }", {"refreshToken": kept["refreshToken"]}
    )
    assert refused["code"] == "SESSION_ENDED"
    assert "errors" not in await ask(client, renewed["accessToken"], "{ me { id } }")


async def test_a_session_of_somebody_else_is_not_there_but_for_the_superadministrator(
    database: Database, make: Factory
) -> None:
    account = await make.account()
    mine = await opened(database, account)
    key = mine.actor.session_id
    assert key is not None

    stranger = await answer(database, sessions.end_session_of, actor=await make.actor(), session_id=key)
    boss = await answer(
        database, sessions.end_session_of, actor=await make.actor(superadmin=True), session_id=key
    )

    assert isinstance(stranger, NotFound)
    assert boss == key
    assert await run(database, sessions.refresh, mine.refresh_token) is None


@pytest.mark.parametrize("keep", [True, False])
async def test_signing_out_everywhere_ends_all_sessions_but_the_one_that_may_stay(
    client: Client, make: Factory, keep: bool
) -> None:
    account = await person(make)
    others = [await signed_in(client, account) for _ in range(2)]
    this = await signed_in(client, account)

    done = await ask(
        client,
        this["accessToken"],
        "mutation ($keep: Boolean!) { signOutEverywhere(input: {keepThis: $keep}) "
        "{ ... on SignedOutEverywhere { ended } } }",
        keep=keep,
    )

    assert done["data"]["signOutEverywhere"]["ended"] == (2 if keep else 3)
    for tokens in (*others, this):
        assert "errors" in await ask(client, tokens["accessToken"], "{ me { id } }")
        renewed = await client.mutate("tokenRefresh", "", {"refreshToken": tokens["refreshToken"]})
        assert (renewed["__typename"] == "Tokens") == (keep and tokens is this)


async def test_an_administrator_sees_the_sessions_of_an_account_and_nobody_else_does(
    client: Client, make: Factory
) -> None:
    account, boss = await person(make), await make.actor(superadmin=True)
    await signed_in(client, account)
    query = "query ($id: ID!) { account(id: $id) { sessions { id address } } }"

    seen = await client.data(query, boss, id=gid("Account", account))
    unseen = await client.data(query, await make.actor(), id=gid("Account", account))

    assert len(seen["account"]["sessions"]) == 1
    assert unseen["account"] is None


# A new password by an administrator's leave


async def test_a_reset_ends_everything_and_its_code_sets_one_new_password(
    client: Client, make: Factory
) -> None:
    account, boss = await person(make), await make.actor(superadmin=True)
    before = await signed_in(client, account)

    leave = await client.mutate(
        "accountResetPassword",
        "... on PasswordResetCode { resetCode expiresAt }",
        {"id": gid("Account", account)},
        boss,
    )

    assert "errors" in await ask(client, before["accessToken"], "{ me { id } }")
    assert (await signed_in(client, account))["code"] == "CREDENTIALS_WRONG"
    order = {"code": leave["resetCode"], "newPassword": "another long password"}
    made = await client.mutate("passwordReset", "... on Tokens { accessToken }", order)
    again = await client.mutate("passwordReset", "", order)
    assert "errors" not in await ask(client, made["accessToken"], "{ me { id } }")
    assert again["code"] == "RESET_CODE_WRONG"
    assert (await signed_in(client, account))["code"] == "CREDENTIALS_WRONG"


async def test_one_of_many_uses_of_a_reset_code_succeeds(database: Database, make: Factory) -> None:
    account, boss = await make.account(), await make.actor(superadmin=True)
    code, _ = await run(database, sessions.allow_reset, actor=boss, account_id=account.id)

    answers = await asyncio.gather(
        *(answer(database, sessions.reset_password, code=code, password_hash="hash") for _ in range(10))
    )

    assert sorted(isinstance(item, ResetCodeWrong) for item in answers) == [False] + [True] * 9


async def test_a_later_code_ends_an_earlier_one(database: Database, make: Factory) -> None:
    account, boss = await make.account(), await make.actor(superadmin=True)
    earlier, _ = await run(database, sessions.allow_reset, actor=boss, account_id=account.id)
    later, _ = await run(database, sessions.allow_reset, actor=boss, account_id=account.id)

    assert isinstance(
        await answer(database, sessions.reset_password, code=earlier, password_hash="hash"), ResetCodeWrong
    )
    assert await answer(database, sessions.reset_password, code=later, password_hash="hash") == account.id


# OAuth 2


async def test_oauth_clients_renew_and_revoke(client: Client, make: Factory) -> None:
    account = await person(make)

    async def post(path: str, **form: str) -> Any:
        return await client.http.post(path, data=form)

    first = (
        await post("/auth/token", grant_type="password", username=account.email, password=PASSWORD)
    ).json()
    second = (await post("/auth/refresh", refresh_token=first["refresh_token"])).json()
    for token in ("nonsense", second["refresh_token"], second["refresh_token"]):
        revoked = await post("/auth/revoke", token=token)
        assert (revoked.status_code, revoked.content) == (200, b"")
        assert revoked.headers["cache-control"] == "no-store"
    refused = await post("/auth/refresh", refresh_token=second["refresh_token"])
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
    assert (await post("/auth/revoke")).json()["error"] == "invalid_request"


async def test_revoking_an_access_token_ends_it_and_its_session_at_once(
    client: Client, make: Factory
) -> None:
    account = await person(make)
    tokens = await signed_in(client, account)

    assert (await client.http.post("/auth/revoke", data={"token": tokens["accessToken"]})).status_code == 200

    assert "errors" in await ask(client, tokens["accessToken"], "{ me { id } }")
    assert (await client.mutate("tokenRefresh", "", {"refreshToken": tokens["refreshToken"]}))["code"] == (
        "SESSION_ENDED"
    )


async def test_a_parameter_that_comes_twice_is_refused(client: Client) -> None:
    answer = await client.http.post(
        "/auth/token",
        content="grant_type=password&grant_type=password&username=a&password=b",
        headers={"content-type": "application/x-www-form-urlencoded"},
    )

    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
