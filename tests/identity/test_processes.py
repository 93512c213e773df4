"""Several server processes are one server: what one has counted, used up or signed, the others know."""

import asyncio
from typing import Any

import bcrypt
import httpx

from ekoyka.database import Database
from ekoyka.identity.credentials import Tokens
from ekoyka.settings import Settings
from tests.client import gid
from tests.factories import Factory
from tests.servers import Server, running

PASSWORD = "a long enough password"
OLD, NEW = "o" * 48, "n" * 48


async def account(make: Factory, **more: Any) -> Any:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    return await make.account(password_hash=hashed, **more)


async def post(server: Server, path: str, **form: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as http:
        return await http.post(f"{server.url}{path}", data=form)


async def sign_in(server: Server, email: str, password: str = PASSWORD) -> httpx.Response:
    return await post(server, "/auth/token", grant_type="password", username=email, password=password)


async def me(server: Server, token: str) -> int:
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{server.url}/graphql",
            json={"query": "{ me { id } }"},
            headers={"authorization": f"Bearer {token}"},
        )
    return answer.status_code


async def test_guesses_at_one_process_are_counted_at_the_other(settings: Settings, make: Factory) -> None:
    known = (await account(make)).email
    async with running(settings, 2) as servers:
        for email in (known, "nobody@example.org"):
            wrong = [await sign_in(servers[turn % 2], email, "a wrong password") for turn in range(10)]
            late = [await sign_in(server, email) for server in servers]

            assert [answer.status_code for answer in wrong] == [400] * 10
            for answer in late:
                assert (answer.status_code, answer.json()["error"]) == (429, "slow_down")
                assert 0 < int(answer.headers["retry-after"]) <= 60
        async with httpx.AsyncClient() as http:
            codes = [
                (await http.get(f"{servers[turn % 2].url}/verify/0123456789")).status_code
                for turn in range(62)
            ]

    assert codes == [404] * 60 + [429] * 2


async def test_one_of_fifty_uses_of_a_refresh_token_at_two_processes_succeeds(
    settings: Settings, make: Factory, database: Database
) -> None:
    known = await account(make)
    async with running(settings, 2) as servers:
        first = (await sign_in(servers[0], known.email)).json()

        answers = await asyncio.gather(
            *(
                post(servers[turn % 2], "/auth/refresh", refresh_token=first["refresh_token"])
                for turn in range(50)
            )
        )

        good = [answer for answer in answers if answer.status_code == 200]
        assert len(good) == 1
        assert {answer.status_code for answer in answers} == {200, 400}
        # The token was stolen from somebody, and nobody knows from whom.
        again = await post(servers[1], "/auth/refresh", refresh_token=good[0].json()["refresh_token"])
        assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    noted = await database.fetch("SELECT DISTINCT action FROM access_entry WHERE object_type = 'Session'")
    assert [row["action"] for row in noted] == ["refresh_token_reuse"]


async def test_keys_are_changed_between_restarts_without_signing_anyone_out(
    settings: Settings, make: Factory
) -> None:
    """New and old processes side by side: the new key is known everywhere before anything is signed with it."""
    place = await make.dispensary()
    stay = await make.stay(await make.patient(place), await make.bed(place))
    boss = await account(make, superadmin=True)
    paper = "mutation ($id: ID!) { stayCheckOut(input: {id: $id, version: 1, outcome: DISCHARGED, certificate: {}}) "
    paper += "{ ... on Stay { certificates { downloadUrl } } } }"

    async with running(settings, EKOYKA_TOKEN_KEYS=OLD) as [before]:
        first = (await sign_in(before, boss.email)).json()
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {first['access_token']}"}) as http:
            made = await http.post(
                f"{before.url}/graphql", json={"query": paper, "variables": {"id": gid("Stay", stay)}}
            )
        [certificate] = made.json()["data"]["stayCheckOut"]["certificates"]
        link = "/certificates/" + certificate["downloadUrl"].rpartition("/")[2]

        async with running(settings, EKOYKA_TOKEN_KEYS=f"{OLD},{NEW}") as [both]:
            await renews(both, before, first)
    async with (
        running(settings, EKOYKA_TOKEN_KEYS=f"{OLD},{NEW}") as [both],
        running(settings, EKOYKA_TOKEN_KEYS=f"{NEW},{OLD}") as [turned],
    ):
        third = (await sign_in(turned, boss.email)).json()
        assert [await me(server, first["access_token"]) for server in (both, turned)] == [200, 200]
        assert [await me(server, third["access_token"]) for server in (both, turned)] == [200, 200]
        async with httpx.AsyncClient() as http:
            files = [(await http.get(server.url + link)).status_code for server in (both, turned)]
        assert files == [200, 200]
        fourth = await renews(turned, both, third)
    async with running(settings, EKOYKA_TOKEN_KEYS=NEW) as [after]:
        assert (
            await me(after, first["access_token"]) == 401
        )  # it has ended by the time that its key is dropped
        assert await me(after, fourth["access_token"]) == 200
        await renews(after, after, fourth)
        async with httpx.AsyncClient() as http:
            assert (await http.get(after.url + link)).status_code == 403

    assert Tokens([NEW], issuer="ekoyka", ttl_s=600).read(fourth["access_token"]).actor.superadmin


async def renews(here: Server, there: Server, tokens: dict[str, str]) -> dict[str, str]:
    """The session goes on here, and its new access token is good there too."""
    answer = await post(here, "/auth/refresh", refresh_token=tokens["refresh_token"])
    assert answer.status_code == 200
    renewed: dict[str, str] = answer.json()
    assert await me(there, renewed["access_token"]) == 200
    return renewed
