"""Sessions in browsers' cookies: what is set, what is carried, and what is refused where the page is another's."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from ekoyka.settings import Settings
from tests.client import Browser, Client, gid, serving
from tests.factories import Factory
from tests.identity.test_credentials import FORGERIES, claims, signed
from tests.identity.test_sessions import PASSWORD, person

ME = "{ me { id } }"
RENAME = 'mutation ($v: Int!) { accountUpdate(input: {version: $v, name: "Другая"}) { __typename } }'
REFRESH = "mutation { tokenRefresh(input: {}) { __typename ... on Refusal { code } } }"
SIGN_OUT = "mutation { signOut(input: {}) { __typename } }"


@pytest.fixture
async def page(client: Client, make: Factory) -> AsyncIterator[Browser]:
    """The page of somebody who has signed in."""
    account = await person(make, name="Анна")
    page = Browser(client)
    await page.sign_in(account.email, PASSWORD)
    yield page
    await page.http.aclose()


def code(answer: httpx.Response) -> tuple[int, str]:
    [error] = answer.json()["errors"]
    return answer.status_code, error["extensions"]["code"]


async def me(page: Browser) -> str | None:
    """The code with which the page is refused, if it is."""
    answer = (await page.ask(ME)).json()
    return answer["errors"][0]["extensions"]["code"] if "errors" in answer else None


def attributes(answer: httpx.Response) -> dict[str, str]:
    """Each cookie that the answer sets, with its attributes, without its value and how many seconds it lasts."""
    found = {}
    for line in answer.headers.get_list("set-cookie"):
        head, _, tail = line.partition("; ")
        found[head.partition("=")[0]] = re.sub(r"Max-Age=[1-9]\d*", "Max-Age=n", tail)
    return found


# What is set


async def test_a_browsers_tokens_stand_in_cookies_and_in_no_body(client: Client, make: Factory) -> None:
    account, page = await person(make, name="Анна"), Browser(client)

    answer = await page.sign_in(account.email, PASSWORD)

    strict = "Max-Age=n; Path=/; Secure; HttpOnly; SameSite=Strict"
    assert attributes(answer) == {
        "ekoyka_access": strict,
        "ekoyka_refresh": strict,
        "ekoyka_csrf": "Max-Age=n; Path=/; Secure; SameSite=Strict",
    }
    session = answer.json()["data"]["signIn"]
    assert session.pop("expiresAt") < session.pop("endsAt")
    assert session == {"__typename": "BrowserSession", "account": {"name": "Анна"}}
    assert len({page.cookie(name) for name in ("access", "refresh", "csrf")}) == 3
    for name in ("access", "refresh", "csrf"):
        assert str(page.cookie(name)) not in answer.text


async def test_over_tls_the_cookies_are_this_very_hosts_alone(settings: Settings, make: Factory) -> None:
    account = await person(make)
    public = settings.model_copy(update={"public_url": "https://beds.example.org"})
    async with serving(public) as client:
        page = Browser(client, "https://beds.example.org")
        set_cookies = attributes(await page.sign_in(account.email, PASSWORD))
        assert await me(page) is None
        elsewhere = await page.ask(
            ME, headers={"x-csrf-token": str(page.cookie("csrf")), "origin": "http://beds.example.org"}
        )

    # What browsers demand of this prefix: Secure, the whole path, no domain (RFC 6265bis, 4.1.3.2).
    assert set(set_cookies) == {"__Host-ekoyka_access", "__Host-ekoyka_refresh", "__Host-ekoyka_csrf"}
    assert all(
        "Secure" in told and "Path=/;" in told and "Domain" not in told for told in set_cookies.values()
    )
    assert code(elsewhere) == (403, "CROSS_SITE_REQUEST")


async def test_a_programs_tokens_come_in_the_body_and_set_no_cookie(client: Client, make: Factory) -> None:
    account = await person(make)

    answer = await client.http.post(
        "/graphql",
        json={
            "query": "mutation ($e: String!, $p: String!) { signIn(input: {email: $e, password: $p}) { __typename } }",
            "variables": {"e": account.email, "p": PASSWORD},
        },
    )

    assert answer.json()["data"]["signIn"]["__typename"] == "Tokens"
    assert "set-cookie" not in answer.headers


async def test_whoever_registers_or_sets_a_new_password_in_a_browser_is_signed_in_there(
    client: Client, make: Factory
) -> None:
    boss, pages = await make.actor(superadmin=True), [Browser(client), Browser(client)]

    assert (
        await pages[0].data(
            'mutation ($p: String!) { register(input: {email: "new@example.org", password: $p, name: "Новая", '
            "browser: true}) { __typename } }",
            p=PASSWORD,
        )
    )["__typename"] == "BrowserSession"
    account = (await pages[0].data(ME))["id"]
    leave = await client.mutate(
        "accountResetPassword", "... on PasswordResetCode { resetCode }", {"id": account}, boss
    )
    assert (
        await pages[1].data(
            "mutation ($c: String!, $p: String!) { passwordReset(input: {code: $c, newPassword: $p, browser: true}) "
            "{ __typename } }",
            c=leave["resetCode"],
            p=PASSWORD + "!",
        )
    )["__typename"] == "BrowserSession"

    assert (await me(pages[0]), await me(pages[1])) == ("UNAUTHENTICATED", None)


async def test_a_new_password_goes_on_in_the_browser_and_ends_every_other_session(page: Browser) -> None:
    before = page.cookie("access"), page.cookie("refresh"), page.cookie("csrf")

    made = await page.data(
        "mutation ($o: String!, $n: String!) { passwordChange(input: {password: $o, newPassword: $n}) "
        "{ __typename } }",
        o=PASSWORD,
        n=PASSWORD + "!",
    )

    after = page.cookie("access"), page.cookie("refresh"), page.cookie("csrf")
    assert made == {"__typename": "BrowserSession"}
    assert set(before).isdisjoint(after)
    assert await me(page) is None
    for name, value in zip(("access", "refresh", "csrf"), before, strict=True):
        page.put(name, str(value))
    assert await me(page) == "UNAUTHENTICATED"
    assert (await page.data(REFRESH))["code"] == "SESSION_ENDED"


# What is carried


async def test_a_page_asks_and_changes_beside_its_csrf_token(page: Browser, client: Client) -> None:
    assert (await page.data(RENAME, v=1))["__typename"] == "Account"
    assert await page.data("{ me { name } }") == {"name": "Другая"}


@pytest.mark.parametrize("given", ["absent", "empty", "wrong", "another session's", "the access token"])
@pytest.mark.parametrize("document", [ME, RENAME, SIGN_OUT, REFRESH])
async def test_what_cookies_carry_without_the_sessions_csrf_token_is_refused_and_nothing_happens(
    page: Browser, client: Client, make: Factory, given: str, document: str
) -> None:
    other, stranger = Browser(client), await person(make)
    await other.sign_in(stranger.email, PASSWORD)
    values = {
        "empty": "",
        "wrong": "x" * 43,
        "another session's": str(other.cookie("csrf")),
        "the access token": str(page.cookie("access")),
    }
    headers = {} if given == "absent" else {"x-csrf-token": values[given]}

    refused = await page.ask(document, headers=headers, **({"v": 1} if document == RENAME else {}))

    assert code(refused) == (403, "CSRF_TOKEN_WRONG")
    assert "set-cookie" not in refused.headers
    assert await page.data("{ me { name } }") == {"name": "Анна"}
    assert (await page.data(REFRESH))["__typename"] == "BrowserSession"


@pytest.mark.parametrize("document", [SIGN_OUT, REFRESH])
async def test_a_refresh_cookie_alone_needs_the_sessions_csrf_token_just_as_much(
    page: Browser, document: str
) -> None:
    page.http.cookies.delete(page.browsers.access)

    for headers in ({}, {"x-csrf-token": ""}, {"x-csrf-token": "x" * 43}):
        refused = await page.ask(document, headers=headers)
        assert code(refused) == (403, "CSRF_TOKEN_WRONG")
        assert "set-cookie" not in refused.headers

    assert (await page.data(REFRESH))["__typename"] == "BrowserSession"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "https://ward.test:8443"},
        {"origin": "https://sub.ward.test"},
        {"origin": "null"},
        {"origin": "https://[/"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "nonsense"},
        {"origin": "https://ward.test", "sec-fetch-site": "same-site"},
        {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
    ],
)
@pytest.mark.parametrize("document", [RENAME, REFRESH, SIGN_OUT])
async def test_another_sites_page_is_refused_even_with_the_csrf_token(
    page: Browser, headers: dict[str, str], document: str
) -> None:
    beside = {**headers, "x-csrf-token": str(page.cookie("csrf"))}

    refused = await page.ask(document, headers=beside, **({"v": 1} if document == RENAME else {}))

    assert code(refused) == (403, "CROSS_SITE_REQUEST")
    assert await page.data("{ me { name } }") == {"name": "Анна"}


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": "https://ward.test"}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}],
)
async def test_a_browser_that_says_less_of_where_it_is_needs_its_csrf_token_all_the_same(
    page: Browser, headers: dict[str, str]
) -> None:
    answer = await page.ask(ME, headers={**headers, "x-csrf-token": str(page.cookie("csrf"))})

    assert "errors" not in answer.json()


async def test_another_sites_page_signs_nobody_in(client: Client, make: Factory) -> None:
    account = await person(make)
    refused = await Browser(client).ask(
        "mutation ($e: String!, $p: String!) { signIn(input: {email: $e, password: $p, browser: true}) "
        "{ __typename } }",
        headers={"origin": "https://evil.example"},
        e=account.email,
        p=PASSWORD,
    )

    assert code(refused) == (403, "CROSS_SITE_REQUEST")
    assert "set-cookie" not in refused.headers
    assert not await client.services.database.fetch("SELECT FROM session")


async def test_beside_a_bearer_token_cookies_mean_nothing(
    page: Browser, client: Client, make: Factory
) -> None:
    actor = await make.actor()
    bearer = {"authorization": f"Bearer {client.token(actor)}", "origin": "https://evil.example"}

    as_bearer = await page.ask(ME, headers=bearer)
    forged = await page.ask(ME, headers={"authorization": "Bearer x"})
    refreshed = await page.ask(REFRESH, headers=bearer)

    assert as_bearer.json()["data"]["me"]["id"] == gid("Account", actor.account_id)
    assert code(forged) == (401, "UNAUTHENTICATED")
    assert refreshed.json()["data"]["tokenRefresh"]["code"] == "SESSION_ENDED"
    assert await me(page) is None


async def test_a_get_changes_nothing_whatever_it_carries(page: Browser) -> None:
    for accept in ("application/json", "text/html"):
        answer = await page.http.get(
            "/graphql", params={"query": RENAME, "variables": '{"v": 1}'}, headers={"accept": accept}
        )
        assert "set-cookie" not in answer.headers

    assert await page.data("{ me { name } }") == {"name": "Анна"}


# Renewing


async def test_an_expired_access_token_is_renewed_by_the_refresh_cookie(page: Browser) -> None:
    csrf, first = page.cookie("csrf"), page.cookie("refresh")
    page.http.cookies.delete(page.browsers.access)
    assert await me(page) == "UNAUTHENTICATED"

    renewed = await page.ask(REFRESH)

    assert set(attributes(renewed)) == {"ekoyka_access", "ekoyka_refresh"}
    assert renewed.json()["data"]["tokenRefresh"] == {"__typename": "BrowserSession"}
    assert (page.cookie("csrf"), await me(page)) == (csrf, None)
    assert first not in (None, page.cookie("refresh"))


async def test_a_refresh_cookie_is_used_once_too(page: Browser) -> None:
    used = str(page.cookie("refresh"))
    await page.data(REFRESH)
    page.put("refresh", used)

    again = await page.ask(REFRESH)

    assert again.json()["data"]["tokenRefresh"]["code"] == "SESSION_ENDED"
    assert set(attributes(again).values()) == {"Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Strict"}
    assert page.cookie("refresh") is None


async def test_pages_that_renew_one_after_the_other_stay_signed_in(page: Browser) -> None:
    """As the explorer's pages do, under a lock of the browser's: whoever has waited looks first."""
    lock, used = asyncio.Lock(), []
    page.http.cookies.delete(page.browsers.access)

    async def renewing() -> None:
        if await me(page) is not None:
            async with lock:
                if await me(page) is not None:
                    used.append(await page.data(REFRESH))

    await asyncio.gather(*(renewing() for _ in range(10)))

    assert used == [{"__typename": "BrowserSession"}]
    assert await me(page) is None


async def test_a_browsers_refresh_token_is_good_in_no_body_and_a_programs_in_no_cookie(
    page: Browser, client: Client, make: Factory
) -> None:
    account = await person(make)
    tokens = await client.mutate(
        "signIn",
        "... on Tokens { accessToken refreshToken }",
        {"email": account.email, "password": PASSWORD},
    )
    in_a_body = await client.mutate("tokenRefresh", "", {"refreshToken": page.cookie("refresh")})
    by_oauth = await client.http.post("/auth/refresh", data={"refresh_token": str(page.cookie("refresh"))})
    assert await me(page) is None
    assert (await page.data(REFRESH))["__typename"] == "BrowserSession"

    page.put("access", tokens["accessToken"])
    page.put("refresh", tokens["refreshToken"])
    assert await me(page) == "UNAUTHENTICATED"
    in_a_cookie = (await page.data(REFRESH))["code"]

    assert (in_a_body["code"], by_oauth.json()["error"], in_a_cookie) == (
        "SESSION_ENDED",
        "invalid_grant",
        "SESSION_ENDED",
    )
    program = await client.mutate("tokenRefresh", "", {"refreshToken": tokens["refreshToken"]})
    assert program["__typename"] == "Tokens"


async def test_a_browser_that_slept_through_a_change_of_keys_stays_signed_in(
    settings: Settings, make: Factory
) -> None:
    account = await person(make)
    old, new = (
        settings.model_copy(update={"token_keys": Settings(token_keys=letter * 48).token_keys})
        for letter in "on"
    )
    async with serving(old) as client:
        page = Browser(client)
        await page.sign_in(account.email, PASSWORD)
        kept = page.http.cookies
    async with serving(new) as client:
        page = Browser(client)
        page.http.cookies = kept
        assert await me(page) == "UNAUTHENTICATED"
        assert (await page.data(REFRESH))["__typename"] == "BrowserSession"
        assert await me(page) is None


# Planted cookies


async def test_of_two_cookies_of_one_name_neither_counts(
    page: Browser, client: Client, make: Factory
) -> None:
    stranger, other = Browser(client), await person(make)
    await stranger.sign_in(other.email, PASSWORD)
    name, own = page.browsers.access, str(page.cookie("access"))
    headers = {"x-csrf-token": str(page.cookie("csrf"))}
    page.http.cookies.clear()

    for pair in ((own, stranger.cookie("access")), (stranger.cookie("access"), own)):
        beside = {**headers, "cookie": "; ".join(f"{name}={value}" for value in pair)}
        assert code(await page.ask(ME, headers=beside))[1] == "UNAUTHENTICATED"


async def test_a_planted_session_is_of_no_use_to_whoever_planted_it(
    page: Browser, client: Client, make: Factory
) -> None:
    """The page still says its own CSRF token, and that is not the planted session's."""
    stranger, other = Browser(client), await person(make)
    await stranger.sign_in(other.email, PASSWORD)
    for name in ("access", "refresh"):
        page.put(name, str(stranger.cookie(name)))

    for document in (ME, REFRESH, SIGN_OUT):
        assert code(await page.ask(document)) == (403, "CSRF_TOKEN_WRONG")


# Endings


async def test_signing_out_takes_the_cookies_away_and_ends_the_session(page: Browser, client: Client) -> None:
    kept = str(page.cookie("refresh")), str(page.cookie("csrf"))

    answer = await page.ask(SIGN_OUT)

    assert set(attributes(answer)) == {"ekoyka_access", "ekoyka_refresh", "ekoyka_csrf"}
    assert all(told.startswith("Max-Age=0; ") for told in attributes(answer).values())
    assert [page.cookie(name) for name in ("access", "refresh", "csrf")] == [None] * 3
    again = await page.ask(
        REFRESH, headers={"cookie": f"{page.browsers.refresh}={kept[0]}", "x-csrf-token": kept[1]}
    )
    assert again.json()["data"]["tokenRefresh"]["code"] == "SESSION_ENDED"


@pytest.mark.parametrize("ending", ["everywhere", "one session", "blocked", "reset", "new role"])
async def test_what_ends_a_session_ends_it_at_once_in_a_browser_too(
    page: Browser, client: Client, make: Factory, ending: str
) -> None:
    account, boss = (await page.data(ME))["id"], await make.actor(superadmin=True)
    match ending:
        case "everywhere":
            await page.data("mutation { signOutEverywhere(input: {}) { __typename } }")
        case "one session":
            [session] = (await page.data("{ me { sessions { id } } }"))["sessions"]
            await client.mutate("sessionEnd", "", session, boss)
        case "blocked":
            await client.mutate("accountBlock", "", {"id": account}, boss)
        case "reset":
            await client.mutate("accountResetPassword", "", {"id": account}, boss)
        case "new role":
            await client.mutate("roleGrant", "", {"accountId": account, "role": "SUPERADMIN"}, boss)

    assert await me(page) == "UNAUTHENTICATED"
    goes_on = (await page.data(REFRESH)).get("code") is None
    assert goes_on == (ending == "new role")


# Forgeries


@pytest.mark.parametrize("carrier", ["bearer", "cookie"])
async def test_no_forgery_is_accepted_and_none_is_a_server_error(
    settings: Settings, make: Factory, carrier: str
) -> None:
    """Every forgery of `test_credentials`, over HTTP; an honest token made in the same way is accepted."""
    await make.account(id=7, auth_version=3)
    csrf = "c" * 43
    beside = {"csrf": hashlib.sha256(csrf.encode()).hexdigest()}
    theirs = settings.model_copy(update={"token_keys": Settings(token_keys="k" * 48).token_keys})
    async with serving(theirs) as client:

        async def ask(token: str) -> httpx.Response:
            raw = token.encode("utf-8", "surrogatepass")
            headers: dict[str, Any] = (
                {"authorization": b"Bearer " + raw}
                if carrier == "bearer"
                else {"cookie": b"ekoyka_access=" + raw, "x-csrf-token": csrf}
            )
            return await client.http.post("/graphql", json={"query": ME}, headers=headers)

        honest = await ask(signed(claims(**beside)))
        answers = {name: await ask(forged()) for name, forged in FORGERIES.items()}
        unbound = await ask(signed(claims(csrf="no hash")))

    assert honest.json()["data"]["me"]["id"] == gid("Account", 7)
    assert len(answers) >= 20
    for name, answer in {**answers, "a claim that is no digest": unbound}.items():
        assert answer.status_code < 500, name
        assert code(answer)[1] == "UNAUTHENTICATED", name
