"""The contract, the settings' documentation, and the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

from ekoyka import migrate
from ekoyka.api.schema import sdl
from ekoyka.database import Database
from ekoyka.settings import Settings
from tests.client import Client
from tests.factories import Factory

ROOT = Path(__file__).parents[2]


def ekoyka(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One run of the command line, with nothing of ours in its environment but this."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EKOYKA_")}
    clean.pop("DATABASE_URL", None)
    return subprocess.run(
        [sys.executable, "-m", "ekoyka", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )


async def test_schema_graphql_is_the_schema(client: Client) -> None:
    assert (ROOT / "schema.graphql").read_text() == sdl(client.app.state.schema), "run `make schema`"


async def test_tables_and_migrations_do_not_drift_apart(owned: Database) -> None:
    assert await migrate.drift(owned) == []


async def test_the_migrations_go_down_and_up_again(owned: Database) -> None:
    await migrate.downgrade(owned, "base")
    left = await owned.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    functions = await owned.fetch("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
    await migrate.upgrade(owned)

    assert [row["tablename"] for row in left] == ["alembic_version"]
    assert functions == []
    assert await migrate.at_head(owned)


def test_the_readme_documents_every_setting_with_its_default() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, field in Settings.model_fields.items():
        variable = "DATABASE_URL" if name == "database_url" else f"EKOYKA_{name.upper()}"
        [row] = re.findall(rf"^\| `{variable}` \| (.*) \| (.*) \|$", readme, re.MULTILINE)
        value = field.default
        if isinstance(value, tuple):
            value = ",".join(map(str, value)) or None
        default = "—" if value is None else f"`{getattr(value, 'value', value)}`"
        assert row == (default, field.description), f"{variable} in the README"


def test_a_wrong_setting_is_named() -> None:
    ended = ekoyka("serve", EKOYKA_PORT="eighty", EKOYKA_TOKEN_KEYS="short")

    assert ended.returncode == 2
    assert "EKOYKA_PORT" in ended.stderr
    assert "EKOYKA_TOKEN_KEYS" in ended.stderr
    assert "short" not in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_an_administrator_is_made_on_the_command_line(database_url: str, database: Database) -> None:
    arguments = ("create-admin", "--email", "Root@Example.org", "--name", "Главный")
    made = ekoyka(*arguments, DATABASE_URL=database_url, EKOYKA_ADMIN_PASSWORD="correct horse")
    again = ekoyka(*arguments, DATABASE_URL=database_url, EKOYKA_ADMIN_PASSWORD="correct horse")
    weak = ekoyka(*arguments, DATABASE_URL=database_url, EKOYKA_ADMIN_PASSWORD="short")

    assert (made.returncode, again.returncode, weak.returncode) == (0, 2, 2)
    assert "уже зарегистрированы" in again.stderr
    rows = await database.fetch(
        "SELECT a.email, g.role FROM account a JOIN role_grant g ON g.account_id = a.id"
    )
    assert [tuple(row) for row in rows] == [("root@example.org", "SUPERADMIN")]


async def test_the_doctor_says_what_is_wrong_and_how_to_mend_it(database_url: str, make: Factory) -> None:
    sick = ekoyka("doctor", DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    before = ekoyka(
        "doctor",
        DATABASE_URL=database_url,
        EKOYKA_TOKEN_KEYS="k" * 40,
        EKOYKA_PUBLIC_URL="https://beds.example.org",
    )
    await make.account(superadmin=True)
    after = ekoyka("doctor", DATABASE_URL=database_url, EKOYKA_TOKEN_KEYS="k" * 40)

    assert sick.returncode == before.returncode == after.returncode == 1
    assert "EKOYKA_TOKEN_KEYS" in sick.stdout
    assert "The database cannot be reached" in sick.stdout
    assert "✗ Superadministrators who can sign in: 0" in before.stdout
    assert "create-admin" in before.stdout
    assert "EKOYKA_TRUSTED_PROXIES" in before.stdout
    assert "✓ Superadministrators who can sign in: 1" in after.stdout
    assert "No server answers" in after.stdout
    assert "Traceback" not in sick.stdout + sick.stderr


async def test_metrics_tell_of_operations_statements_pools_feed_and_beds(
    client: Client, make: Factory
) -> None:
    await make.bed(await make.dispensary())
    admin = await make.actor(superadmin=True)
    await client.data("{ me { id } }", admin)
    await client.codes("{ nope }", admin)

    text = (await client.http.get("/metrics")).text

    for line in (
        r'ekoyka_operations_total\{outcome="ok",type="query"\} [1-9]',
        r'ekoyka_operations_total\{outcome="graphql_validation_failed",type="unplanned"\} [1-9]',
        r'ekoyka_execution_seconds_count\{type="query"\} [1-9]',
        r"ekoyka_statements_total [1-9]",
        r"ekoyka_subscriptions_open 0",
        r"ekoyka_feed_lag_seconds_count",
        r'ekoyka_pool_connections\{pool="read",state="limit"\} 5',
        r'ekoyka_beds\{status="FREE"\} 1',
        r"ekoyka_feed_connected 1",
    ):
        assert re.search(line, text), line


async def test_the_process_is_alive_and_ready(client: Client) -> None:
    alive, ready = await client.http.get("/healthz"), await client.http.get("/readyz")

    assert (alive.status_code, alive.json()) == (200, {"alive": True})
    assert ready.json() == {"ready": True, "database": True, "migrations": True, "feed": True}
    assert alive.headers["x-request-id"] != ready.headers["x-request-id"]
    named = await client.http.get("/healthz", headers={"x-request-id": "ward-7"})
    forged = await client.http.get("/healthz", headers={"x-request-id": "a\tb" * 40})
    assert named.headers["x-request-id"] == "ward-7"
    assert forged.headers["x-request-id"] != "a\tb" * 40
