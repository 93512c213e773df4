"""The doctor: looks at a deployment and says in plain words what is wrong and how to mend it."""

import asyncio
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime

from ekoyka import explorer, migrate
from ekoyka.database import WARD_ROLE, Database, DatabaseUnavailable, DatabaseUnfit
from ekoyka.identity import seals
from ekoyka.identity.credentials import SettingsIncomplete, load_keys
from ekoyka.settings import Mode, Settings

_SKEW_S = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; ``remedy`` says what to do where it is not good."""

    good: bool
    what: str
    remedy: str = ""


async def checkup(settings: Settings) -> list[Finding]:
    """What there is to say about the deployment of these settings, in the order in which to mend it."""
    findings = [_secrets(settings), _address(settings), _proxies(settings), _explorer()]
    if settings.database_url is not None:
        async with Database(settings.database_url.get_secret_value(), settings, pooled=False) as database:
            findings += await _database(database)
    else:
        findings.append(
            Finding(
                settings.mode is Mode.DEMO,
                "DATABASE_URL is not set: the embedded PostgreSQL in "
                f"{settings.data_dir} is used, good for a first try on one machine.",
                "For production set DATABASE_URL=postgresql://user:password@host/ekoyka (PostgreSQL 16 or newer).",
            )
        )
    findings.append(await asyncio.to_thread(_server, settings))
    return findings


def _secrets(settings: Settings) -> Finding:
    if settings.mode is Mode.DEMO and not settings.token_keys:
        return Finding(True, "Demonstration mode: the token key is generated and kept in the data folder.")
    try:
        load_keys(settings)
    except SettingsIncomplete as error:
        return Finding(False, "There is no key to sign tokens with.", str(error))
    return Finding(True, "A token key is set.")


def _address(settings: Settings) -> Finding:
    if settings.mode is Mode.PRODUCTION and not settings.base_url.startswith("https://"):
        return Finding(
            False,
            f"Clients are told to use {settings.base_url}, which is not encrypted.",
            "Put a TLS proxy in front and set EKOYKA_PUBLIC_URL=https://your.host; certificates and links carry it.",
        )
    return Finding(True, f"Clients use {settings.base_url}.")


def _proxies(settings: Settings) -> Finding:
    if settings.base_url.startswith("https://") and not settings.trusted_proxies:
        return Finding(
            False,
            "Every request seems to come from the TLS proxy: all clients share one address's rates.",
            "Set EKOYKA_TRUSTED_PROXIES to the proxy's address, and see that it writes X-Forwarded-For or Forwarded.",
        )
    return Finding(True, f"Proxies that are believed: {len(settings.trusted_proxies)}.")


def _explorer() -> Finding:
    return Finding(
        explorer.assets_present(),
        "The explorer's assets are built."
        if explorer.assets_present()
        else "The explorer's assets are missing.",
        "With node 20.11 or newer: make assets. Everything else works without.",
    )


async def _database(database: Database) -> list[Finding]:
    try:
        await database.check_fit()
        at_head = await migrate.at_head(database)
        version = await database.fetch_value("SELECT current_setting('server_version')")
        database_now: datetime = await database.fetch_value("SELECT clock_timestamp()")
        findings = [
            Finding(True, f"PostgreSQL {version} answers and knows Cyrillic."),
            Finding(
                at_head,
                f"The schema is at revision {migrate.head()}."
                if at_head
                else "The schema is not the newest.",
                "ekoyka migrate, or start the server, which does it by itself.",
            ),
        ]
        skew = abs((datetime.now(UTC) - database_now).total_seconds())
        findings.append(
            Finding(
                skew < _SKEW_S,
                f"This machine's clock and the database's differ by {skew:.1f} s.",
                "Let both follow a time server (NTP): tokens and check-ins are judged by them.",
            )
        )
        if at_head:
            async with Database(database.url, database.settings, pooled=False, role=WARD_ROLE) as everything:
                findings += await _contents(everything)
    except DatabaseUnfit as error:
        return [Finding(False, "The database is not fit.", str(error))]
    except DatabaseUnavailable:
        return [
            Finding(
                False,
                "The database cannot be reached.",
                "See that PostgreSQL runs, that DATABASE_URL names its host, database, user and password, and that "
                "pg_hba.conf lets this machine in.",
            )
        ]
    return findings


async def _contents(database: Database) -> list[Finding]:
    admins = await database.fetch_value(
        "SELECT count(*) FROM role_grant g JOIN account a ON a.id = g.account_id "
        "WHERE g.role = 'SUPERADMIN' AND a.blocked_at IS NULL"
    )
    late = await database.fetch_value(
        "SELECT count(*) FROM reservation WHERE ended_at IS NULL AND until < now() - interval '1 minute'"
    )
    connections = await database.fetch_value(
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    )
    settings = database.settings
    # Beside the pools, two of the server's own, and the worker's.
    wanted = settings.workers * (
        settings.read_pool_size + settings.write_pool_size + 2 + 3 * settings.worker_inside
    )
    return [
        _access_log(await seals.inspect(database)),
        Finding(
            admins > 0,
            f"Superadministrators who can sign in: {admins}.",
            "ekoyka create-admin --email you@example.org --name 'Your Name'",
        ),
        Finding(
            late == 0,
            f"Reservations past their time and not yet ended: {late}.",
            "No server is running that ends them: start one.",
        ),
        Finding(
            wanted <= connections,
            f"The server may open {wanted} connections; PostgreSQL allows {connections}.",
            "Lower EKOYKA_WORKERS, EKOYKA_READ_POOL_SIZE or EKOYKA_WRITE_POOL_SIZE, or raise max_connections.",
        ),
    ]


def _access_log(found: seals.Verdict) -> Finding:
    wrong = [
        *(f"seal {number} does not fit its entries" for number in found.broken_seals),
        *([f"{found.missing_seals} seals are missing"] if found.missing_seals else []),
        *([f"{found.unsealed} entries were never sealed"] if found.unsealed else []),
        *([f"{found.altered_sets} sets of patients were altered"] if found.altered_sets else []),
    ]
    last = f"; the last seal is {found.last.number}, {found.last.digest}" if found.last else ""
    return Finding(
        found.whole,
        f"The access log is whole{last}."
        if found.whole
        else f"The access log is not whole: {', '.join(wrong)}.",
        "Somebody has changed what may only be added to: see who can sign in to PostgreSQL as the tables' owner, and "
        "compare with a backup. Seals are also told in the server's log (access_log_sealed).",
    )


def _server(settings: Settings) -> Finding:
    address = f"http://{'127.0.0.1' if settings.host in ('0.0.0.0', '::') else settings.host}:{settings.port}/readyz"  # noqa: S104  # nosec B104
    request = urllib.request.Request(address)
    if settings.metrics_token is not None:
        request.add_header("authorization", f"Bearer {settings.metrics_token.get_secret_value()}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  # nosec B310
            checks = json.load(answer)
    except urllib.error.HTTPError as error:
        checks = json.load(error)
    except (OSError, ValueError):
        return Finding(
            False,
            f"No server answers at {address}.",
            "Start one with `ekoyka serve`, or see EKOYKA_HOST and EKOYKA_PORT.",
        )
    missing = ", ".join(name for name, good in checks.items() if good is False)
    return Finding(
        bool(checks.get("ready")),
        "The server is ready." if checks.get("ready") else f"The server is not ready: {missing}.",
        str(checks.get("reason") or "See its log; it goes on by itself once what is missing is there."),
    )
