"""Sign-in with an OpenID Connect provider: a certified one that is honest, and one that lies."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson
import pytest
from joserfc import jws
from joserfc.jwk import RSAKey
from structlog.testing import capture_logs

from ekoyka.database import Database
from ekoyka.settings import Settings
from tests.client import Browser, Client, serving
from tests.factories import Factory
from tests.identity.providers import (
    CLIENT_ID,
    CLIENT_SECRET,
    Liar,
    certified,
    lying,
    signed_in_there,
    with_provider,
)
from tests.identity.test_credentials import encoded
from tests.identity.test_sessions import person, signed_in

PAGE = {"accept": "text/html"}


def allowing(settings: Settings, *, links: bool = False, creates: bool = False) -> Settings:
    return settings.model_copy(update={"oidc_links_accounts": links, "oidc_creates_accounts": creates})


async def away(page: Browser) -> str:
    """Where the server sends the browser to."""
    answer = await page.http.get("/auth/oidc/login", headers=PAGE)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


async def back(page: Browser, address: str, **headers: str) -> httpx.Response:
    """What the server answers when the browser comes back."""
    parts = urlsplit(address)
    return await page.http.get(f"{parts.path}?{parts.query}", headers={**PAGE, **headers})


async def sign_in(page: Browser, who: str) -> httpx.Response:
    return await back(page, await signed_in_there(await away(page), who))


def code(answer: httpx.Response) -> str:
    return str(answer.json()["errors"][0]["extensions"]["code"])


async def sessions_of(database: Database) -> int:
    return int(await database.fetch_value("SELECT count(*) FROM session"))


# The certified provider


@pytest.fixture
async def honest(settings: Settings) -> AsyncIterator[Settings]:
    """Settings of a server beside the certified provider, which allow neither linking nor making accounts."""
    async with certified(settings) as beside:
        yield beside


@pytest.mark.parametrize("ask_userinfo", [False, True])
async def test_somebody_new_gets_an_account_without_roles_where_that_is_allowed(
    settings: Settings, database: Database, ask_userinfo: bool
) -> None:
    async with (
        certified(settings, ask_userinfo=ask_userinfo) as beside,
        serving(allowing(beside, creates=True)) as client,
    ):
        page = Browser(client)
        welcome = await sign_in(page, "7:Anna@example.org")
        me = await page.data("{ me { name email grants { role } sessions { current } } }")
        await sign_in(page, "7:Anna@example.org")
        same = await page.data("{ me { email } }")

    assert welcome.status_code == 200
    assert 'content="0;url=/"' in welcome.text
    assert me == {
        "name": "Анна Иванова",
        "email": "anna@example.org",
        "grants": [],
        "sessions": [{"current": True}],
    }
    assert same == {"email": "anna@example.org"}
    rows = await database.fetch("SELECT issuer, subject FROM external_identity")
    assert [tuple(row) for row in rows] == [(beside.oidc_issuer, "7:Anna@example.org")]


async def test_the_session_is_a_browsers_and_the_cookie_of_the_way_there_is_gone(honest: Settings) -> None:
    async with serving(allowing(honest, creates=True)) as client:
        page = Browser(client)
        there = await page.http.get("/auth/oidc/login")
        welcome = await back(page, await signed_in_there(there.headers["location"], "7:anna@example.org"))

    [kept] = there.headers.get_list("set-cookie")
    assert kept.startswith("ekoyka_oidc=")
    assert kept.endswith("; Max-Age=600; Path=/; Secure; HttpOnly; SameSite=Lax")
    told = {
        line.partition("=")[0]: line.partition("; ")[2] for line in welcome.headers.get_list("set-cookie")
    }
    assert set(told) == {"ekoyka_access", "ekoyka_refresh", "ekoyka_csrf", "ekoyka_oidc"}
    assert told["ekoyka_oidc"].startswith("Max-Age=0; ")
    assert told["ekoyka_refresh"].endswith("Secure; HttpOnly; SameSite=Strict")
    asked = parse_qs(urlsplit(there.headers["location"]).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["response_type"] == ["code"]
    assert asked["redirect_uri"] == [f"{honest.base_url}/auth/oidc/callback"]
    assert all(len(asked[name][0]) == 43 for name in ("state", "nonce", "code_challenge"))


async def test_going_there_changes_no_row(honest: Settings, database: Database) -> None:
    async with serving(honest) as client:
        before = client.services.database.statements
        await away(Browser(client))
        assert client.services.database.statements == before


async def test_a_verified_address_makes_somebody_the_account_that_has_it_where_that_is_allowed(
    honest: Settings, database: Database, make: Factory
) -> None:
    account = await person(make, email="anna@example.org", superadmin=True)
    async with serving(allowing(honest, links=True)) as client:
        older = await signed_in(client, account)
        page = Browser(client)
        await sign_in(page, "7:Anna@Example.org")
        me = await page.data("{ me { email grants { role } } }")
        by_password = await signed_in(client, account)
        renewed = await client.mutate("tokenRefresh", "", {"refreshToken": older["refreshToken"]})
        # The provider gives the address to somebody else later on.
        another = await sign_in(Browser(client), "8:anna@example.org")

    assert me == {"email": "anna@example.org", "grants": [{"role": "SUPERADMIN"}]}
    # Whoever knew the password had never proved that the address was theirs.
    assert (by_password["code"], renewed["code"]) == ("CREDENTIALS_WRONG", "SESSION_ENDED")
    assert (another.status_code, "ACCOUNT_NOT_LINKED" in another.text) == (403, True)
    noted = await database.fetch("SELECT action FROM access_entry WHERE account_id = $1", account.id)
    assert [row["action"] for row in noted] == ["identity_link"]


@pytest.mark.parametrize(
    ("who", "links", "creates", "refusal"),
    [
        ("7:anna@example.org", False, False, "ACCOUNT_MISSING"),
        ("7:anna@example.org", False, True, "ACCOUNT_NOT_LINKED"),
        ("7:nobody@example.org", True, False, "ACCOUNT_MISSING"),
        ("7!:anna@example.org", True, True, "ADDRESS_NOT_VERIFIED"),
        ("7!:nobody@example.org", True, True, "ADDRESS_NOT_VERIFIED"),
        ("7", True, True, "ADDRESS_NOT_VERIFIED"),
        ("7:blocked@example.org", True, True, "ACCOUNT_BLOCKED"),
    ],
)
async def test_whoever_may_not_come_in_is_told_why_in_both_languages(
    honest: Settings,
    database: Database,
    make: Factory,
    who: str,
    links: bool,
    creates: bool,
    refusal: str,
) -> None:
    await person(make, email="anna@example.org")
    blocked = await person(make, email="blocked@example.org")
    await database.fetch("UPDATE account SET blocked_at = now() WHERE id = $1", blocked.id)
    async with serving(allowing(honest, links=links, creates=creates)) as client:
        page = Browser(client)
        answer = await sign_in(page, who)
        signed = page.cookie("access")

    assert (answer.status_code, signed) == (403, None)
    assert refusal in answer.text
    assert "<h1>" in answer.text
    assert '<p lang="en">' in answer.text
    assert not await database.fetch("SELECT FROM external_identity")
    assert await sessions_of(database) == 0
    assert await database.fetch_value("SELECT count(*) FROM account WHERE password_hash = '-'") == 0


async def test_a_linked_account_that_is_blocked_later_does_not_come_in_any_more(
    honest: Settings, database: Database
) -> None:
    async with serving(allowing(honest, creates=True)) as client:
        page = Browser(client)
        await sign_in(page, "7:anna@example.org")
        await database.fetch("UPDATE account SET blocked_at = now()")
        at_once = (await page.ask("{ me { id } }")).json()
        answer = await sign_in(Browser(client), "7:anna@example.org")

    assert at_once["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    assert (answer.status_code, "ACCOUNT_BLOCKED" in answer.text) == (403, True)


async def test_two_first_sign_ins_at_once_make_one_account(honest: Settings, database: Database) -> None:
    async with serving(allowing(honest, creates=True)) as client:
        pages = [Browser(client) for _ in range(4)]
        ways = [await signed_in_there(await away(page), "7:anna@example.org") for page in pages]
        answers = await asyncio.gather(*(back(page, way) for page, way in zip(pages, ways, strict=True)))

    assert [answer.status_code for answer in answers] == [200] * 4
    assert await database.fetch_value("SELECT count(*) FROM account") == 1
    assert await sessions_of(database) == 4


async def test_a_code_is_good_once_and_for_the_browser_that_began_alone(
    honest: Settings, database: Database
) -> None:
    async with serving(allowing(honest, creates=True)) as client:
        page, stranger = Browser(client), Browser(client)
        way = await signed_in_there(await away(page), "7:anna@example.org")
        kept = f"ekoyka_oidc={page.cookie('oidc')}"
        await away(stranger)

        without = await back(Browser(client), way)
        with_its_own = await back(stranger, way)
        good = await back(page, way)
        again = await back(page, way)
        replayed = await back(Browser(client), way, cookie=kept)

    refused = (without, with_its_own, again, replayed)
    assert good.status_code == 200
    assert [answer.status_code for answer in refused] == [400] * 4
    assert all("OIDC_REFUSED" in answer.text for answer in refused)
    assert await sessions_of(database) == 1


@pytest.mark.parametrize(
    "change", ["state", "no state", "no code", "an error", "another issuer", "no issuer"]
)
async def test_an_answer_that_was_tampered_with_signs_nobody_in(
    honest: Settings, database: Database, change: str
) -> None:
    async with serving(allowing(honest, creates=True)) as client:
        page = Browser(client)
        way = urlsplit(await signed_in_there(await away(page), "7:anna@example.org"))
        given = {name: values[0] for name, values in parse_qs(way.query).items()}
        match change:
            case "state":
                given["state"] = "x" * 43
            case "an error":
                given = {"state": given["state"], "iss": given["iss"], "error": "access_denied"}
            case "another issuer":
                given["iss"] = "https://evil.example"
            case _:
                del given[{"no state": "state", "no code": "code", "no issuer": "iss"}[change]]
        answer = await page.http.get(way.path, params=given)

    assert (answer.status_code, code(answer)) == (400, "OIDC_REFUSED")
    assert page.cookie("oidc") is None
    assert await sessions_of(database) == 0


async def test_what_the_browser_kept_is_good_for_some_minutes(honest: Settings, database: Database) -> None:
    async with serving(allowing(honest, creates=True)) as client:
        assert client.services.provider is not None
        client.services.provider.begun_ttl_s = -1
        answer = await sign_in(Browser(client), "7:anna@example.org")

    assert (answer.status_code, await sessions_of(database)) == (400, 0)


async def test_tokens_codes_and_addresses_stand_in_no_log(
    honest: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with serving(allowing(honest.model_copy(update={"log_level": "DEBUG"}), creates=True)) as client:
        page = Browser(client)
        with capture_logs() as logs:
            there = await away(page)
            way = await signed_in_there(there, "7:anna@example.org")
            await back(page, way)
            await back(page, way)

    secrets = [values[0] for query in (there, way) for values in parse_qs(urlsplit(query).query).values()]
    secrets += [str(page.cookie(name)) for name in ("access", "refresh", "csrf")]
    told = str(logs) + caplog.text
    assert "oidc_refused" in told
    for secret in (*secrets, "anna@example.org"):
        if len(secret) > 20 and not secret.startswith(("http", "openid")):
            assert secret not in told


# The liar

KEY = RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"}, private=True)
STRANGERS = RSAKey.generate_key(2048, {"kid": "1"}, private=True)
Made = Callable[[Liar, str], str]


def _claims(liar: Liar, given_nonce: str, **other: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {
        "iss": liar.issuer,
        "aud": CLIENT_ID,
        "sub": "7",
        "iat": now,
        "exp": now + 60,
        "nonce": given_nonce,
        "email": "anna@example.org",
        "email_verified": True,
    }
    return {name: value for name, value in {**good, **other}.items() if value is not ...}


def _signed(key: Any = KEY, algorithm: str = "RS256", kid: str = "1", **other: Any) -> Made:
    def made(liar: Liar, nonce: str) -> str:
        # Written as JSON may be: with any sign as an escape, half surrogates too.
        content = json.dumps(_claims(liar, nonce, **other)).encode()
        return jws.serialize_compact({"alg": algorithm, "kid": kid}, content, key, algorithms=[algorithm])

    return made


def _by_hand(algorithm: str, secret: bytes | None) -> Made:
    def made(liar: Liar, nonce: str) -> str:
        text = f"{encoded({'alg': algorithm, 'kid': '1'})}.{encoded(_claims(liar, nonce))}"
        return f"{text}.{encoded(hmac.digest(secret, text.encode(), 'sha256')) if secret else ''}"

    return made


def _old() -> int:
    return int(time.time()) - 3600


LIES: dict[str, Made] = {
    "alg none": _by_hand("none", None),
    # The confusion of algorithms: what everybody knows of the key, as a secret.
    "HS256 with the public key": _by_hand("HS256", KEY.as_pem(private=False)),
    "HS256 with the client's secret": _by_hand("HS256", CLIENT_SECRET.encode()),
    "another key": _signed(STRANGERS),
    "another key's id": _signed(STRANGERS, kid="2"),
    "another audience": _signed(aud="somebody else"),
    "several audiences, for another": _signed(aud=[CLIENT_ID, "else"], azp="else"),
    "several audiences, for nobody": _signed(aud=[CLIENT_ID, "else"]),
    "no audience": _signed(aud=...),
    "another issuer": _signed(iss="https://evil.example"),
    "no issuer": _signed(iss=...),
    "another nonce": _signed(nonce="x" * 43),
    "no nonce": _signed(nonce=...),
    "expired": lambda liar, nonce: _signed(exp=_old())(liar, nonce),
    "no expiry": _signed(exp=...),
    "no time of issue": _signed(iat=...),
    "from the future": lambda liar, nonce: _signed(iat=int(time.time()) + 3600)(liar, nonce),
    "no subject": _signed(sub=...),
    "an empty subject": _signed(sub=""),
    "a subject without end": _signed(sub="7" * 256),
    "a subject that is a number": _signed(sub=7),
    "another access token": _signed(at_hash="x" * 22),
    "nonsense": lambda liar, nonce: "a.b.c",
}


async def told(liar: Liar, client: Client, id_token: Made | None) -> tuple[httpx.Response, Browser]:
    """A sign-in with the liar, which vouches by this ID token."""
    page = Browser(client)
    asked = parse_qs(urlsplit(await away(page)).query)
    liar.keys = {"keys": [KEY.as_dict(private=False)]}
    body: dict[str, Any] = {"access_token": "at", "token_type": "Bearer"}
    if id_token is not None:
        body["id_token"] = id_token(liar, asked["nonce"][0])
    liar.token = (200, orjson.dumps(body))
    return await page.http.get("/auth/oidc/callback", params={"code": "c", "state": asked["state"][0]}), page


async def test_no_lie_signs_anybody_in(settings: Settings, database: Database) -> None:
    """The honest token made in the same way does; otherwise the lies would be refused for the wrong reason."""
    async with (
        lying() as liar,
        serving(allowing(with_provider(settings, liar.issuer), creates=True)) as client,
    ):
        for lie, made in {**LIES, "no ID token": None}.items():
            answer, page = await told(liar, client, made)
            assert (answer.status_code, code(answer)) == (400, "OIDC_REFUSED"), lie
            assert page.cookie("access") is None, lie
        assert await sessions_of(database) == 0
        answer, page = await told(liar, client, _signed())
        assert answer.status_code == 200, answer.text
        assert "errors" not in (await page.ask("{ me { id } }")).json()

    assert liar.asked[-1]["redirect_uri"] == f"{settings.base_url}/auth/oidc/callback"
    assert len(liar.asked[-1]["code_verifier"]) == 43


async def test_issuer_and_subject_say_who_it_is_and_the_address_no_more(
    settings: Settings, database: Database
) -> None:
    async with (
        lying() as liar,
        serving(allowing(with_provider(settings, liar.issuer), creates=True, links=True)) as client,
    ):
        await told(liar, client, _signed())
        _, moved = await told(liar, client, _signed(email="elsewhere@example.org", email_verified=False))
        _, other = await told(liar, client, _signed(sub="8", email="elsewhere@example.org"))

        assert await moved.data("{ me { email } }") == {"email": "anna@example.org"}
        assert await other.data("{ me { email } }") == {"email": "elsewhere@example.org"}


async def test_an_address_counts_as_verified_by_true_alone(settings: Settings) -> None:
    async with (
        lying() as liar,
        serving(allowing(with_provider(settings, liar.issuer), creates=True)) as client,
    ):
        for verified in ("true", 1, None, ...):
            answer, _ = await told(liar, client, _signed(email_verified=verified))
            assert (answer.status_code, code(answer)) == (403, "ADDRESS_NOT_VERIFIED"), verified
        for email in ("nonsense", "a b@example.org", "\ud800@example.org", "a\x00@example.org"):
            answer, _ = await told(liar, client, _signed(email=email))
            assert (answer.status_code, code(answer)) == (403, "INVALID_INPUT"), email
        answer, page = await told(liar, client, _signed(name="  \x00Анна\ud800 " + "я" * 300))
        assert answer.status_code == 200
        assert (await page.data("{ me { name } }"))["name"].startswith("Анна я")


async def test_a_provider_that_is_down_or_no_provider_is_named_in_a_bounded_time(
    settings: Settings, database: Database
) -> None:
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        nobody, silent_one = "http://127.0.0.1:1", f"http://127.0.0.1:{silent.getsockname()[1]}"
        for issuer in (nobody, silent_one):
            hurried = with_provider(settings, issuer).model_copy(update={"oidc_timeout_s": 0.5})
            async with serving(hurried) as client:
                began = time.monotonic()
                answer = await client.http.get("/auth/oidc/login")
                shown = await client.http.get("/auth/oidc/login", headers=PAGE)
                assert time.monotonic() - began < 5
            assert (answer.status_code, code(answer)) == (503, "PROVIDER_UNAVAILABLE")
            assert answer.headers["retry-after"] == "10"
            assert (shown.status_code, "не отвечает" in shown.text) == (503, True)


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"token_endpoint": None},
        {"jwks_uri": "file:///etc/passwd"},
    ],
)
async def test_what_a_provider_says_of_itself_is_looked_at(
    settings: Settings, change: dict[str, Any]
) -> None:
    async with lying() as liar, serving(with_provider(settings, liar.issuer)) as client:
        liar.metadata |= change
        answer = await client.http.get("/auth/oidc/login")

    assert (answer.status_code, code(answer)) == (503, "PROVIDER_UNAVAILABLE")


@pytest.mark.parametrize(
    "token", [(500, b"{}"), (200, b"no JSON"), (200, b"[]"), (502, b"<html>"), (200, b"null")]
)
async def test_a_provider_that_breaks_down_on_the_way_back_is_named(
    settings: Settings, database: Database, token: tuple[int, bytes]
) -> None:
    async with lying() as liar, serving(with_provider(settings, liar.issuer)) as client:
        page = Browser(client)
        state = parse_qs(urlsplit(await away(page)).query)["state"][0]
        liar.token = token
        answer = await page.http.get("/auth/oidc/callback", params={"code": "c", "state": state})

    assert (answer.status_code, code(answer)) == (503, "PROVIDER_UNAVAILABLE")
    assert await sessions_of(database) == 0


async def test_a_provider_may_change_its_keys(settings: Settings) -> None:
    async with (
        lying() as liar,
        serving(allowing(with_provider(settings, liar.issuer), creates=True)) as client,
    ):
        first, _ = await told(liar, client, _signed())
        newer = RSAKey.generate_key(2048, {"kid": "2"}, private=True)

        def by_the_newer(liar: Liar, nonce: str) -> str:
            liar.keys = {"keys": [newer.as_dict(private=False)]}
            return _signed(newer, kid="2")(liar, nonce)

        second, _ = await told(liar, client, by_the_newer)

    assert (first.status_code, second.status_code) == (200, 200)


async def test_where_no_provider_is_configured_the_addresses_say_so(client: Client) -> None:
    for path in ("/auth/oidc/login", "/auth/oidc/callback?code=c&state=s"):
        answer = await client.http.get(path)
        assert (answer.status_code, code(answer)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"EKOYKA_OIDC_ISSUER": "http://sso.example.org", "EKOYKA_OIDC_CLIENT_ID": "e"}, "oidc_issuer"),
        ({"EKOYKA_OIDC_ISSUER": "https://sso.example.org"}, "oidc_client_id"),
        ({"EKOYKA_PUBLIC_URL": "beds.example.org"}, "public_url"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], named: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ValueError, match=named):
        Settings()
