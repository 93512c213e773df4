"""How often something may be tried: counted before it is made, shared by processes, forgotten in time."""

import asyncio
import os
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import bcrypt
import pytest

from ekoyka.database import Database
from ekoyka.identity import limits
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import NICENESS, PasswordHasher
from ekoyka.rates import FIRST_WAIT_S, LONGEST_WAIT_S, Limit, RateLimited, attempt, forgive, sweep
from ekoyka.settings import Settings
from tests.client import Client, serving
from tests.factories import Factory
from tests.feed import until

GUESSES = Limit("guess", "anna", 10, 3600, slower=True)
CALLS = Limit("call", "anna", 5, 60)
PASSWORD, WRONG = "a long enough password", "a wrong password"


async def tried(database: Database, *limits: Limit) -> int | None:
    """After how many seconds it may be tried again; None where it may be now."""
    try:
        await attempt(database, *limits)
    except RateLimited as limited:
        return limited.retry_after_s
    return None


async def passes(database: Database, seconds: float) -> None:
    """So much time goes by, as far as counters know."""
    await database.fetch(
        "UPDATE rate SET at = at - make_interval(secs => $1), until = until - make_interval(secs => $1)",
        seconds,
    )


async def test_so_many_are_free_and_the_rest_wait_for_the_window_to_end(database: Database) -> None:
    waits = [await tried(database, CALLS) for _ in range(7)]

    assert waits[:5] == [None] * 5
    assert all(wait is not None and 50 < wait <= 60 for wait in waits[5:])
    await passes(database, 61)
    assert await tried(database, CALLS) is None


async def test_guesses_get_slower_and_slower_and_never_slower_than_that(database: Database) -> None:
    assert [await tried(database, GUESSES) for _ in range(10)] == [None] * 10
    waits = []
    for _ in range(8):
        wait = await tried(database, GUESSES)
        assert wait is not None
        assert await tried(database, GUESSES) == pytest.approx(wait, abs=2)  # asking makes it no longer
        waits.append(wait)
        await passes(database, wait + 1)
        assert await tried(database, GUESSES) is None

    assert waits == pytest.approx([min(FIRST_WAIT_S * 2**n, LONGEST_WAIT_S) for n in range(8)], abs=2)


async def test_a_window_without_any_forgets_all_guesses(database: Database) -> None:
    for _ in range(12):
        await tried(database, GUESSES)
    await passes(database, GUESSES.window_s + LONGEST_WAIT_S)

    assert [await tried(database, GUESSES) for _ in range(10)] == [None] * 10


async def test_of_a_hundred_at_once_no_more_get_through_than_are_free(
    database: Database, database_url: str, settings: Settings
) -> None:
    async with Database(database_url, settings) as other:
        waits = await asyncio.gather(
            *(tried(place, GUESSES, CALLS) for place in (database, other) for _ in range(50))
        )

    assert waits.count(None) == CALLS.free


async def test_what_is_forgiven_and_what_is_over_is_gone(database: Database) -> None:
    for _ in range(11):
        await tried(database, GUESSES, CALLS)
    await forgive(database, GUESSES)
    assert await tried(database, GUESSES) is None

    await passes(database, 7200)
    await sweep(database)
    assert await database.fetch_value("SELECT count(*) FROM rate") == 0


async def test_what_a_narrow_limit_refuses_uses_up_no_wide_one(database: Database) -> None:
    everybody = Limit("everybody", "", 20, 60)
    mine, anothers = Limit("call", "anna", 5, 60), Limit("call", "boris", 100, 60)
    for _ in range(50):
        await tried(database, mine, everybody)

    waits = [await tried(database, anothers, everybody) for _ in range(20)]

    assert [wait is None for wait in waits] == [True] * 15 + [False] * 5


async def test_an_attempt_counts_its_weight_and_one_without_any_only_asks(database: Database) -> None:
    heavy, question = Limit("call", "anna", 5, 60, weight=4), Limit("call", "anna", 5, 60, weight=0)

    assert [await tried(database, question) for _ in range(9)] == [None] * 9
    assert [await tried(database, heavy) for _ in range(2)] == [None] * 2
    assert await tried(database, question) == pytest.approx(60, abs=2)
    await passes(database, 61)
    assert [await tried(database, limit) for limit in (question, heavy, heavy)] == [None] * 3
    assert await tried(database, Limit("other", "anna", 5, 60, weight=5)) is None
    assert await tried(database, Limit("other", "anna", 5, 60)) == pytest.approx(60, abs=2)


async def test_to_ask_makes_no_wait_longer(database: Database) -> None:
    question = Limit("guess", "anna", 10, 3600, slower=True, weight=0)
    for _ in range(10):
        await tried(database, GUESSES)
    await passes(database, FIRST_WAIT_S + 1)

    assert [await tried(database, question) for _ in range(3)] == [None] * 3
    assert await tried(database, GUESSES) is None
    assert await tried(database, question) == pytest.approx(2 * FIRST_WAIT_S, abs=2)


def test_an_ipv6_network_is_one_address_and_not_millions() -> None:
    def place(address: str) -> str:
        return limits.registration(address)[0].who

    assert place("2001:db8:1:2::1") == place("2001:db8:1:2:ffff::7") != place("2001:db8:1:3::1")
    assert place("192.0.2.1") != place("192.0.2.2")


async def test_no_address_is_kept(database: Database) -> None:
    await tried(database, Limit("sign-in", "anna@example.org", 10, 60))

    assert "anna" not in str(await database.fetch("SELECT *, encode(key, 'escape') FROM rate"))


# Signing in


async def guess(client: Client, email: str, password: str = WRONG) -> tuple[int, str]:
    answer = await client.http.post(
        "/auth/token", data={"grant_type": "password", "username": email, "password": password}
    )
    return answer.status_code, answer.json().get("error", "")


@pytest.mark.parametrize("known", [True, False])
async def test_after_ten_wrong_guesses_even_the_right_password_must_wait(
    client: Client, make: Factory, known: bool
) -> None:
    """Known and unknown accounts answer the same."""
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    account = await make.account(password_hash=hashed)
    email = account.email if known else "nobody@example.org"

    wrong = [await guess(client, email) for _ in range(10)]
    late = await client.http.post(
        "/auth/token", data={"grant_type": "password", "username": email.upper(), "password": PASSWORD}
    )
    graph = await client.http.post(
        "/graphql",
        json={
            "query": "mutation ($e: String!) { signIn(input: {email: $e, password: $e}) { __typename } }",
            "variables": {"e": email},
        },
    )

    assert wrong == [(400, "invalid_grant")] * 10
    assert (late.status_code, late.json()["error"]) == (429, "slow_down")
    assert 0 < int(late.headers["retry-after"]) <= FIRST_WAIT_S
    assert graph.status_code == 429
    [error] = graph.json()["errors"]
    assert error["extensions"]["code"] == "RATE_LIMITED"
    assert str(error["extensions"]["retryAfterS"]) == graph.headers["retry-after"]


async def test_right_passwords_are_not_counted(client: Client, make: Factory) -> None:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    account = await make.account(password_hash=hashed)
    for _ in range(5):
        for _ in range(5):
            assert await guess(client, account.email) == (400, "invalid_grant")
        assert (await guess(client, account.email, PASSWORD))[0] == 200


async def test_a_strangers_guesses_keep_nobody_from_signing_in_where_they_did_before(
    client: Client, make: Factory
) -> None:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    account = await make.account(password_hash=hashed)
    assert (await guess(client, account.email, PASSWORD))[0] == 200
    database = client.services.database
    await database.fetch("UPDATE session SET address = '192.0.2.9'")  # it was elsewhere
    for _ in range(11):
        last = await guess(client, account.email)
    await database.fetch("UPDATE session SET address = '127.0.0.1'")

    assert last[0] == 429
    assert (await guess(client, account.email, PASSWORD))[0] == 200


async def test_in_all_no_more_are_guessed_but_where_people_have_signed_in_before(
    client: Client, make: Factory
) -> None:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    account = await make.account(password_hash=hashed)
    assert (await guess(client, account.email, PASSWORD))[0] == 200
    *_, everybody = limits.sign_in("anybody", None, known_there=False)
    await attempt(client.services.database, replace(everybody, weight=everybody.free))

    assert (await guess(client, "nobody@example.org"))[0] == 429
    assert (await guess(client, account.email, PASSWORD))[0] == 200


async def test_the_present_password_cannot_be_guessed_with_a_stolen_token(
    client: Client, make: Factory
) -> None:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    account = await make.account(password_hash=hashed)
    thief = Actor(account_id=account.id, auth_version=1)
    change = (
        "mutation ($p: String!) { passwordChange(input: {password: $p, newPassword: $p}) "
        "{ ... on Refusal { code } } }"
    )

    wrong = [(await client.post(change, thief, p=WRONG))["data"]["passwordChange"] for _ in range(10)]

    assert wrong == [{"code": "CREDENTIALS_WRONG"}] * 10
    assert await client.codes(change, thief, p=PASSWORD) == ["RATE_LIMITED"]


async def test_codes_for_a_new_password_cannot_be_tried_out(client: Client) -> None:
    reset = (
        'mutation { passwordReset(input: {code: "0123456789", newPassword: "a long enough password"}) '
        "{ ... on Refusal { code } } }"
    )
    for _ in range(30):
        assert (await client.data(reset))["passwordReset"] == {"code": "RESET_CODE_WRONG"}

    assert await client.codes(reset) == ["RATE_LIMITED"]


async def test_whoever_would_wait_too_long_for_a_hash_is_told_to_come_back() -> None:
    hasher = PasswordHasher(8, threads=1, patience_s=1)

    answers = await asyncio.wait_for(
        asyncio.gather(*(hasher.verify("password", None) for _ in range(500)), return_exceptions=True), 20
    )

    refused = [item for item in answers if isinstance(item, RateLimited)]
    assert refused
    assert answers.count(False) == 500 - len(refused) > 0
    assert all(item.retry_after_s >= 1 for item in refused)

    async def came_back() -> bool:
        with suppress(RateLimited):
            return await hasher.verify("password", None) is False
        return False

    await until(came_back)
    hasher.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
async def test_all_else_goes_before_the_threads_that_hash() -> None:
    hasher = PasswordHasher(4)

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert await hasher._in_thread(niceness) >= NICENESS > niceness()
    hasher.close()


async def test_whoever_waits_for_a_hash_holds_no_connection(
    settings: Settings, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    account, boss = await make.account(password_hash=hashed), await make.actor(superadmin=True)
    narrow = settings.model_copy(update={"read_pool_size": 1, "write_pool_size": 1, "pool_timeout_s": 1.0})

    async with serving(narrow) as client:
        verify, waiting, go_on = client.services.hasher.verify, asyncio.Semaphore(0), asyncio.Event()

        async def held_up(*arguments: Any) -> bool:
            waiting.release()
            await go_on.wait()
            return await verify(*arguments)

        monkeypatch.setattr(client.services.hasher, "verify", held_up)
        signing_in = [asyncio.create_task(guess(client, account.email, PASSWORD)) for _ in range(9)]
        for _ in signing_in:
            await asyncio.wait_for(waiting.acquire(), 20)
        read = await client.codes("{ me { id } }", boss)
        changed = await client.mutate(
            "accountUpdate", "... on Account { id }", {"version": 1, "name": "Б"}, boss
        )
        go_on.set()
        answers = await asyncio.gather(*signing_in)

    assert (read, changed["__typename"]) == ([], "Account")
    assert [status for status, _ in answers] == [200] * 9


# Certificates


async def test_codes_of_certificates_cannot_be_tried_out(settings: Settings) -> None:
    async with serving(settings) as client:
        for _ in range(30):
            await client.data('{ certificateVerification(code: "0123456789") { number } }')
            assert (await client.http.get("/verify/0123456789")).status_code == 404

        page = await client.http.get("/verify/0123456789")
        codes = await client.codes('{ certificateVerification(code: "0123456789") { number } }')

    assert (page.status_code, codes) == (429, ["RATE_LIMITED"])
    assert 0 < int(page.headers["retry-after"]) <= 60
