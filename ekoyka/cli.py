"""The command line: the server, its set-up, imports, and a doctor for deployments."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any, TypeVar

import typer
import uvicorn
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.markup import escape

from ekoyka import __version__, demo, embedded, migrate
from ekoyka.api.schema import build_schema, sdl
from ekoyka.checkup import checkup
from ekoyka.database import Database, DatabaseUnavailable, DatabaseUnfit
from ekoyka.errors import Refusal
from ekoyka.identity.credentials import PasswordHasher, SettingsIncomplete, load_keys
from ekoyka.identity.operations import create_admin
from ekoyka.settings import LogFormat, Mode, Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
imports = typer.Typer(no_args_is_help=True, help="Read CSV files into the database.")
app.add_typer(imports, name="import")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_Result = TypeVar("_Result")
GRACE_S = 20


class _Stop(Exception):
    """Ends the command with a sentence and an exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """What can go wrong is said in words."""
    try:
        yield
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False):
            name = str(item["loc"][0]) if item["loc"] else ""
            variable = name if name == "DATABASE_URL" else f"EKOYKA_{name.upper()}"
            err.print(f"[red]{escape(variable)}:[/] {escape(item['msg'])}")
        raise typer.Exit(2) from None
    except (SettingsIncomplete, embedded.EmbeddedPostgresError, DatabaseUnfit, Refusal) as error:
        err.print(f"[red]{escape(error.message('ru') if isinstance(error, Refusal) else str(error))}[/]")
        raise typer.Exit(2) from None
    except DatabaseUnavailable:
        err.print(
            "[red]База данных недоступна: проверьте DATABASE_URL. The database cannot be reached: see DATABASE_URL.[/]"
        )
        raise typer.Exit(2) from None
    except _Stop as stop:
        err.print(f"[red]{escape(str(stop))}[/]")
        raise typer.Exit(stop.code) from None


@contextlib.contextmanager
def _database(settings: Settings, say: Callable[[str], None]) -> Iterator[Settings]:
    """Settings with a database: the one they name, or the embedded one for as long as the block lasts."""
    if settings.database_url is not None:
        yield settings
        return
    with embedded.running(settings.data_dir, say=say) as server:
        yield settings.model_copy(update={"database_url": SecretStr(server.url())})


def _say(message: str) -> None:
    err.print(f"[dim]·[/] {escape(message)}")


def _address(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


def _with_database(work: Callable[[Database], Awaitable[_Result]], *, migrated: bool = True) -> _Result:
    """Runs the work on the database of the environment, migrated first if need be."""

    async def run(settings: Settings) -> _Result:
        async with Database(_address(settings), settings, pooled=False) as database:
            await database.check_fit()
            if migrated:
                await migrate.upgrade(database)
            return await work(database)

    with _plainly(), _database(Settings(), _say) as settings:
        return asyncio.run(run(settings))
    raise AssertionError("unreachable")


def _stop_in_order(_signal: int, _frame: Any) -> None:
    raise SystemExit(0)


def _serve(settings: Settings) -> None:
    """Serves until it is told to stop."""
    # Worker processes read the environment; so does a worker's own `Settings`.
    os.environ["DATABASE_URL"] = _address(settings)
    os.environ["EKOYKA_MODE"] = settings.mode.value
    os.environ["EKOYKA_LOG_FORMAT"] = settings.log_format.value
    with contextlib.ExitStack() as stack:
        if settings.workers > 1 and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="ekoyka-metrics-")
            )
        # uvicorn passes signals on once it has stopped: what comes after it must still be done.
        signal.signal(signal.SIGTERM, _stop_in_order)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            uvicorn.run(
                "ekoyka.app:from_environment",
                factory=True,
                host=settings.host,
                port=settings.port,
                workers=settings.workers,
                loop="uvloop" if sys.platform != "win32" else "asyncio",
                http="httptools",
                ws="websockets-sansio",
                ws_max_size=256 * 1024,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )


@app.command()
def serve() -> None:
    """Serve, by the settings in the environment. Without DATABASE_URL an embedded PostgreSQL is started."""
    with _plainly():
        settings = Settings()
        load_keys(settings)
        with _database(settings, _say) as ready:
            _serve(ready)


@app.command(name="demo")
def demonstrate() -> None:
    """Serve a demonstration network: sets up all that is missing, keeps it for the next time."""
    with _plainly():
        settings = Settings().model_copy(update={"mode": Mode.DEMO, "log_format": _demo_log()})
        load_keys(settings)
        with _database(settings, _say) as ready:
            asyncio.run(_fill(ready))
            _serve(ready)
            out.print("\nОстановлено. Stopped.")


def _demo_log() -> LogFormat:
    return Settings().log_format if "EKOYKA_LOG_FORMAT" in os.environ else LogFormat.CONSOLE


async def _fill(settings: Settings) -> None:
    hasher = PasswordHasher(settings.password_hash_rounds)
    async with Database(_address(settings), settings, pooled=False) as database:
        await database.check_fit()
        _say("миграции · migrations")
        await migrate.upgrade(database)
        accounts = await demo.fill(database, hasher=hasher, say=_say)
    hasher.close()
    base = settings.base_url
    out.print(f"\n[bold]ЭКойка {__version__}[/]  {base}")
    out.print(f"  GraphiQL      {base}/graphql")
    out.print(f"  метрики       {base}/metrics   состояние {base}/readyz")
    out.print("\n[bold]Учётные записи · accounts[/]")
    for account in accounts:
        out.print(f"  {account.role:<11} {account.email:<28} {account.password:<22} {escape(account.note)}")
    first = accounts[0]
    out.print(
        "\n[bold]Первый запрос · a first query[/] (GraphiQL, вкладка Headers: токен · the token goes to Headers)"
    )
    out.print(
        escape(
            f'  mutation {{ signIn(input: {{email: "{first.email}", password: "{first.password}"}}) '
            "{ ... on Tokens { accessToken } ... on Refusal { message } } }"
        )
    )
    out.print('  {"Authorization": "Bearer …"}', markup=False)
    out.print("\n" + escape(demo.FIRST_QUERY.strip()) + "\n")
    out.print("[dim]Ctrl-C останавливает всё · stops everything[/]\n")


@app.command(name="migrate")
def migrate_command() -> None:
    """Bring the database's schema to the newest migration."""

    async def work(database: Database) -> None:
        _say(f"схема на ревизии · schema at revision {migrate.head()}")

    _with_database(work)


@app.command()
def schema() -> None:
    """Print the GraphQL schema (SDL, sorted)."""
    sys.stdout.write(sdl(build_schema()))


@app.command(name="create-admin")
def create_admin_command(
    email: Annotated[str, typer.Option(prompt=True, help="The e-mail address to sign in with.")],
    name: Annotated[str, typer.Option(prompt=True, help="The person's name.")],
    password: Annotated[
        str,
        typer.Option(prompt=True, hide_input=True, confirmation_prompt=True, envvar="EKOYKA_ADMIN_PASSWORD"),
    ],
) -> None:
    """Make a superadministrator: the first one, or another after a mishap."""

    async def work(database: Database) -> None:
        hasher = PasswordHasher(database.settings.password_hash_rounds)
        hashed = await hasher.hash(password)
        hasher.close()
        async with database.transaction() as session:
            await create_admin(session, email=email, password_hash=hashed, name=name)
        _say("готово · done")

    _with_database(work)


@app.command()
def doctor() -> None:
    """Check a deployment; say in plain words what is wrong and how to mend it. Exits 1 if anything is."""
    with _plainly():
        settings = Settings()
        findings = asyncio.run(checkup(settings))
    for finding in findings:
        mark = "[green]✓[/]" if finding.good else "[red]✗[/]"
        out.print(f"{mark} {escape(finding.what)}")
        if not finding.good:
            out.print(f"    {escape(finding.remedy)}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)
