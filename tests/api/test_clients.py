"""Whose address a request is counted under: the connection's, or what proxies say that the settings name."""

import asyncio
import re
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest
from httpx_ws import aconnect_ws
from pydantic import ValidationError

from ekoyka.api import clients
from ekoyka.api.clients import Proxies
from ekoyka.database import Database
from ekoyka.settings import Settings
from tests.client import Client, serving
from tests.factories import Factory
from tests.servers import ready, start

PASSWORD = "a long enough password"
TOKEN = "m" * 40


def seen(
    peer: str | None, said: Any, *, header: str = "x-forwarded-for", proxies: str = "10.0.0.0/8, ::1"
) -> Any:
    """The address that a request from this peer with these header fields is counted under."""
    settings = Settings(trusted_proxies=proxies, proxy_header=header)
    fields = said if isinstance(said, list) else [said]
    scope = {
        "client": (peer, 1234) if peer else None,
        "headers": [(header.encode(), text.encode("latin-1", "replace")) for text in fields],
    }
    client = Proxies(settings).client(scope)
    return client[0] if client else None


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("203.0.113.9, 192.0.2.1", "192.0.2.1"),  # the first is what the client itself wrote
        ("192.0.2.1, 10.0.0.2", "192.0.2.1"),  # through two of ours
        ("192.0.2.1,10.0.0.3 ,\t10.0.0.2", "192.0.2.1"),
        (["203.0.113.9", "192.0.2.1"], "192.0.2.1"),  # in two fields
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("10.0.0.9", "10.0.0.9"),  # a proxy's own request
        ("10.0.0.9, 10.0.0.2", "10.0.0.9"),
        # Nobody knows what these mean, so it is the last who is known for sure.
        ("", "10.0.0.1"),
        ("unknown", "10.0.0.1"),
        ("192.0.2.1, unknown", "10.0.0.1"),
        ("unknown, 10.0.0.2", "10.0.0.2"),
        ("192.0.2.1, , 10.0.0.2", "10.0.0.2"),
        ("192.0.2.1,", "10.0.0.1"),
        ("192.0.2.1'; DROP TABLE rate; --", "10.0.0.1"),
        ("0300.0.2.1", "10.0.0.1"),
        ("192.0.2.1:99999999", "10.0.0.1"),
        ("[192.0.2.1", "10.0.0.1"),
        ("fe80::1%eth0", "10.0.0.1"),
        ("١٩٢.٠.٢.١", "10.0.0.1"),
        ("localhost", "10.0.0.1"),
        ("1" * 60_000, "10.0.0.1"),
        ("10.0.0.2, " * 5000 + "10.0.0.2", "10.0.0.2"),
    ],
)
def test_of_what_stands_in_the_field_only_what_trusted_proxies_wrote_is_believed(
    said: Any, address: str
) -> None:
    assert seen("10.0.0.1", said) == address


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("for=192.0.2.1", "192.0.2.1"),
        ("For=192.0.2.1;proto=https;by=10.0.0.1", "192.0.2.1"),
        ('proto=https; for="192.0.2.1:4711"', "192.0.2.1"),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        ('for=203.0.113.9, for="192.0.2.1"', "192.0.2.1"),
        ("for=192.0.2.1, for=10.0.0.2", "192.0.2.1"),
        ('for="203.0.113.9, for=192.0.2.1', "192.0.2.1"),  # a client cannot swallow what a proxy appends
        ("for=unknown", "10.0.0.1"),
        ("for=_hidden", "10.0.0.1"),
        ("for=192.0.2.1;for=203.0.113.9", "10.0.0.1"),
        ("192.0.2.1", "10.0.0.1"),
        ("xfor=192.0.2.1", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_where_the_settings_say_so(said: str, address: str) -> None:
    assert seen("10.0.0.1", said, header="forwarded") == address


def test_a_client_that_is_no_trusted_proxy_is_what_its_connection_says() -> None:
    assert seen("192.0.2.66", "203.0.113.9") == "192.0.2.66"
    assert seen("192.0.2.66", "10.0.0.1, 127.0.0.1") == "192.0.2.66"
    assert seen("::1", "203.0.113.9") == "203.0.113.9"
    assert seen("::ffff:10.0.0.1", "203.0.113.9") == "203.0.113.9"
    assert seen(None, "203.0.113.9") is None
    assert seen("10.0.0.1", "203.0.113.9", proxies="") == "10.0.0.1"


def test_nothing_long_that_is_sent_is_kept() -> None:
    before = clients._address.cache_info().currsize
    for number in range(50):
        seen("10.0.0.1", f"{number}" + "1" * 10_000)
        seen("10.0.0.1", f"for={number}" + "1" * 10_000, header="forwarded")

    assert clients._address.cache_info().currsize <= before + 1


@pytest.mark.parametrize("networks", ["*", "10.0.0.1/8", "proxy.example.org", "10.0.0.0/8;192.0.2.1"])
def test_a_setting_that_names_no_networks_is_refused_in_words(networks: str) -> None:
    with pytest.raises(ValidationError, match=r"addresses or networks such as"):
        Settings(trusted_proxies=networks)


SPOOFED = {
    "x-forwarded-for": "203.0.113.9",
    "forwarded": "for=203.0.113.9",
    "x-real-ip": "203.0.113.9",
    "x-client-ip": "203.0.113.9",
    "true-client-ip": "203.0.113.9",
    "cf-connecting-ip": "203.0.113.9",
}


async def test_a_strangers_fields_change_neither_rates_nor_sessions_nor_the_log(
    database: Database, settings: Settings, make: Factory, tmp_path: Path
) -> None:
    """A real server, which uvicorn would by itself let every local client tell its address."""
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    account = await make.account(password_hash=hashed)
    log = tmp_path / "server.log"
    server = await start(settings, log=log, EKOYKA_LOG_LEVEL="INFO", FORWARDED_ALLOW_IPS="*")
    try:
        await asyncio.wait_for(ready(server), 60)
        async with httpx.AsyncClient(base_url=server.url) as http:
            for number in range(70):
                answer = await http.get(
                    "/verify/0123456789", headers={**SPOOFED, "x-forwarded-for": f"203.0.113.{number}"}
                )
            signed_in = await http.post(
                "/auth/token",
                data={"grant_type": "password", "username": account.email, "password": PASSWORD},
                headers=SPOOFED,
            )
            async with aconnect_ws(
                f"{server.url}/graphql?secret=13",
                http,
                subprotocols=["graphql-transport-ws"],
                headers=SPOOFED,
            ):
                pass
    finally:
        await server.stop()

    assert (answer.status_code, signed_in.status_code) == (429, 200)
    assert await database.fetch_value("SELECT array_agg(address) FROM session") == ["127.0.0.1"]
    said = log.read_text().replace(server.url, "")
    assert "socket_closed" in said
    assert not re.search(r"203\.0\.113|127\.0\.0\.1:\d|secret=13", said)


async def test_behind_a_trusted_proxy_each_client_has_its_own_rates_and_sessions(
    settings: Settings, make: Factory, database: Database
) -> None:
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    account = await make.account(password_hash=hashed)
    behind = settings.model_copy(
        update={"trusted_proxies": Settings(trusted_proxies="127.0.0.1").trusted_proxies}
    )

    async with serving(behind) as client:

        async def verify(address: str) -> int:
            headers = {"x-forwarded-for": f"203.0.113.9, {address}"}
            return (await client.http.get("/verify/0123456789", headers=headers)).status_code

        first = [await verify("192.0.2.1") for _ in range(61)]
        second = await verify("192.0.2.2")
        await client.http.post(
            "/auth/token",
            data={"grant_type": "password", "username": account.email, "password": PASSWORD},
            headers={"x-forwarded-for": "2001:db8::7"},
        )

    assert (first[-2:], second) == ([404, 429], 404)
    assert await database.fetch_value("SELECT array_agg(address) FROM session") == ["2001:db8::7"]


# Operators


async def ask(client: Client, path: str, address: str, **headers: str) -> httpx.Response:
    """What somebody at this address is answered."""
    transport = httpx.ASGITransport(app=client.app, client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        return await http.get(path)


async def test_metrics_are_for_the_servers_own_machine_unless_a_setting_says_more(
    client: Client, settings: Settings
) -> None:
    here, there = await ask(client, "/metrics", "127.0.0.1"), await ask(client, "/metrics", "192.0.2.1")
    spoofed = await ask(client, "/metrics", "192.0.2.1", **{"x-forwarded-for": "127.0.0.1"})
    wider = settings.model_copy(
        update={"metrics_networks": Settings(metrics_networks="192.0.2.0/24").metrics_networks}
    )
    async with serving(wider) as other:
        known, unknown = await ask(other, "/metrics", "192.0.2.1"), await ask(other, "/metrics", "::1")

    assert "ekoyka_statements_total" in here.text
    assert (here.status_code, known.status_code) == (200, 200)
    for refused in (there, spoofed, unknown):
        assert (refused.status_code, "ekoyka_statements" in refused.text) == (403, False)


async def test_where_there_is_a_token_for_metrics_nothing_else_opens_them(settings: Settings) -> None:
    async with serving(
        settings.model_copy(update={"metrics_token": Settings(metrics_token=TOKEN).metrics_token})
    ) as client:
        good = await ask(client, "/metrics", "192.0.2.1", authorization=f"Bearer {TOKEN}")
        bad = [
            await ask(client, "/metrics", "127.0.0.1", **fields)
            for fields in (
                {},
                {"authorization": TOKEN},
                {"authorization": f"Basic {TOKEN}"},
                {"authorization": f"Bearer {TOKEN}x"},
                {"authorization": f"Bearer {TOKEN[1:]}"},
                {"authorization": "Bearer"},
            )
        ]
        details = await ask(client, "/readyz", "192.0.2.1", authorization=f"Bearer {TOKEN}")

    assert good.status_code == 200
    assert details.json() == {"ready": True, "database": True, "migrations": True, "feed": True}
    assert {(answer.status_code, answer.headers["www-authenticate"]) for answer in bad} == {(401, "Bearer")}


async def test_strangers_learn_whether_the_server_is_ready_and_not_what_is_amiss(client: Client) -> None:
    assert (await ask(client, "/readyz", "192.0.2.1")).json() == {"ready": True}
    client.app.state.prepared.clear()
    client.app.state.unfit = "the database speaks SQL_ASCII"

    stranger, operator = [await ask(client, "/readyz", address) for address in ("192.0.2.1", "127.0.0.1")]

    assert (stranger.status_code, stranger.json()) == (503, {"ready": False})
    assert operator.json()["reason"] == "the database speaks SQL_ASCII"
