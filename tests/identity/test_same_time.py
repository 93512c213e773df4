"""Whether there is an account is told neither by an answer nor by how long it takes."""

import random
from collections.abc import Mapping
from statistics import median
from time import perf_counter
from typing import Any

import bcrypt
import pytest

from ekoyka.identity import operations, sessions
from ekoyka.identity.credentials import PasswordHasher
from tests.client import Client
from tests.factories import Factory
from tests.identity.transactions import run

PASSWORD, WRONG = "a long enough password", "another long password"
TURNS, ROUNDS = 41, 4
BLOCKED = "blocked, the right password"
# At the lowest cost of bcrypt, at which all the rest shows most.
DIFFERENCE_S = 0.005

SIGN_IN = """mutation ($e: String!, $p: String!) { signIn(input: {email: $e, password: $p}) {
  __typename ... on Refusal { code message path } } }"""


async def world(client: Client, make: Factory) -> dict[str, tuple[str, str]]:
    """E-mail addresses and passwords of every kind that is wrong, and a blocked one's that is right."""
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    database, boss = client.services.database, await make.actor(superadmin=True)
    known, blocked, reset = [await make.account(password_hash=hashed) for _ in range(3)]
    never = await make.account(password_hash="-")
    await run(database, operations.block_account, actor=boss, account_id=blocked.id)
    await run(database, sessions.allow_reset, actor=boss, account_id=reset.id)
    return {
        "unknown": ("nobody@example.org", WRONG),
        "known": (known.email, WRONG),
        "blocked": (blocked.email, WRONG),
        BLOCKED: (blocked.email, PASSWORD),
        "reset": (reset.email, PASSWORD),
        "never had a password": (never.email, "-"),
        "unknown, too long": ("nobody@example.org", PASSWORD * 20),
        "known, too long": (known.email, PASSWORD * 20),
        "known, another behind it": (known.email, PASSWORD + "\t"),
    }


async def over_oauth(client: Client, email: str, password: str) -> tuple[int, Any]:
    answer = await client.http.post(
        "/auth/token", data={"grant_type": "password", "username": email, "password": password}
    )
    return answer.status_code, answer.json()


async def over_graphql(client: Client, email: str, password: str) -> tuple[int, Any]:
    answer = await client.http.post(
        "/graphql", json={"query": SIGN_IN, "variables": {"e": email, "p": password}}
    )
    return answer.status_code, answer.json()


async def asked_in_turns(
    client: Client, kinds: Mapping[str, tuple[str, str]], ask: Any
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """The median time of each kind, and its answers; all kinds in each turn, in an order made up anew."""
    took_s: dict[str, list[float]] = {name: [] for name in kinds}
    answers: dict[str, list[Any]] = {name: [] for name in kinds}
    for _ in range(TURNS):
        await client.services.database.fetch("DELETE FROM rate")
        for name in random.sample(list(kinds), len(kinds)):
            began = perf_counter()
            answer = await ask(client, *kinds[name])
            took_s[name].append(perf_counter() - began)
            answers[name].append(answer)
    return {name: median(found) for name, found in took_s.items()}, answers


@pytest.mark.parametrize("ask", [over_oauth, over_graphql])
async def test_known_and_unknown_accounts_answer_the_same_after_the_same_time(
    client: Client, make: Factory, ask: Any
) -> None:
    """In one of a few rounds: what is always so is so then, whatever else the machine does."""
    kinds = await world(client, make)
    for _ in range(ROUNDS):
        medians, answers = await asked_in_turns(client, kinds, ask)
        # Who knows the password of a blocked account is told so, but no sooner than others are told anything.
        blocked_s, told = medians.pop(BLOCKED), answers.pop(BLOCKED)
        wrong = answers["unknown"][0]
        assert all(given == [wrong] * TURNS for given in answers.values())
        assert told == [told[0]] * TURNS
        assert told[0] != wrong
        apart_s = max(medians.values()) - min(medians.values())
        if apart_s < DIFFERENCE_S and blocked_s > medians["unknown"] - DIFFERENCE_S:
            break

    assert apart_s < DIFFERENCE_S, medians
    assert blocked_s > medians["unknown"] - DIFFERENCE_S


@pytest.mark.parametrize("cost", [4, 5, 8])
async def test_a_hash_of_a_lower_cost_takes_as_long_as_one_of_todays(
    monkeypatch: pytest.MonkeyPatch, cost: int
) -> None:
    """Otherwise accounts that are older than the setting would be known by it."""
    hasher = PasswordHasher(8)
    older = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(cost)).decode()
    spent: list[int] = []

    def counted(real: Any) -> Any:
        def call(password: bytes, salt: bytes) -> Any:
            spent.append(2 ** int(salt[4:6]))
            return real(password, salt)

        return call

    monkeypatch.setattr(bcrypt, "checkpw", counted(bcrypt.checkpw))
    monkeypatch.setattr(bcrypt, "hashpw", counted(bcrypt.hashpw))
    verdicts: Mapping[str | None, bool] = {
        known: await hasher.verify(PASSWORD, known) for known in (older, None)
    }
    hasher.close()

    assert verdicts == {older: True, None: False}
    assert sum(spent) == 2 * 2**8
