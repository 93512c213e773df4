"""The demonstration network: the same for the same seed and day, true to every rule."""

from datetime import UTC, datetime

from ekoyka.database import Database
from ekoyka.demo import ACCOUNTS, fill
from ekoyka.identity import operations
from ekoyka.identity.credentials import PasswordHasher
from tests.client import Client, gid
from tests.conftest import address_of, administer
from tests.invariants import broken_invariants

NOW = datetime(2026, 10, 1, tzinfo=UTC)
_DIGEST = """
SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM (
    SELECT 'p', record_number, name_key, birth_date::text, sex FROM patient
    UNION ALL SELECT 's', patient_id::text, checked_in_at::text, coalesce(checked_out_at::text, ''), diagnosis_code
        FROM stay
    UNION ALL SELECT 'b', bed_id::text, started_at::text, '', '' FROM bed_assignment
) t
"""


async def test_the_same_seed_and_day_make_the_same_network(database: Database, template: str) -> None:
    hasher = PasswordHasher(4)
    said: list[str] = []
    await fill(database, hasher=hasher, say=said.append, now=NOW)
    first = await database.fetch_value(_DIGEST)
    await fill(database, hasher=hasher, say=said.append, now=NOW)
    await administer(f"CREATE DATABASE {template}_twin TEMPLATE {template}")
    async with Database(address_of(f"{template}_twin"), database.settings, pooled=False) as twin:
        await fill(twin, hasher=hasher, say=said.append, now=NOW)
        second = await twin.fetch_value(_DIGEST)
        await fill(twin, hasher=hasher, say=said.append, now=NOW, seed=2)
    await administer(f"DROP DATABASE {template}_twin WITH (FORCE)")
    hasher.close()

    assert first == second == await database.fetch_value(_DIGEST)
    assert sum("данные на месте" in line for line in said) == 2
    assert await broken_invariants(database) == []


async def test_it_looks_like_a_network_and_everybody_can_sign_in(client: Client) -> None:
    database, hasher = client.services.database, client.services.hasher
    accounts = await fill(database, hasher=hasher, say=lambda line: None)

    numbers = (
        await database.fetch(
            "SELECT (SELECT count(*) FROM dispensary) AS places,"
            " (SELECT count(DISTINCT time_zone) FROM dispensary) AS zones, (SELECT count(*) FROM bed) AS beds,"
            " (SELECT count(*) FROM stay WHERE checked_out_at IS NULL) AS open,"
            " (SELECT max(checked_in_at) - min(checked_in_at) > interval '330 days' FROM stay) AS a_year"
        )
    )[0]
    assert (numbers["places"], numbers["zones"], numbers["a_year"]) == (5, 5, True)
    assert 0.7 < numbers["open"] / numbers["beds"] < 0.97
    seen = {}
    for account in accounts:
        async with database.transaction() as session:
            found = await operations.find_credentials(session, account.email)
            assert found is not None
            assert await hasher.verify(account.password, found[1])
            actor = (
                await operations.open_session(session, account_id=found[0], ttl_s=60, password_hash=found[1])
            ).actor
        assert account.role in actor.roles
        data = await client.data("{ dispensaries { totalCount } me { id } }", actor)
        assert data["me"]["id"] == gid("Account", actor.account_id)
        seen[account.email] = data["dispensaries"]["totalCount"]
    assert list(seen.values()) == [5, 1, 1, 1, 1]
    assert {account.role for account in ACCOUNTS} == {"SUPERADMIN", "DOCTOR", "DISPATCHER", "USER"}
