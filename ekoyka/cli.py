"""The command line: the server, its set-up, imports, and a doctor for deployments."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvicorn
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from uvicorn.supervisors import Multiprocess

from ekoyka import backup, documents, embedded, manifest, migrate
from ekoyka.api.intake import Intake
from ekoyka.api.outlets import DirectProtocol
from ekoyka.api.schema import build_schema, sdl
from ekoyka.checkup import checkup
from ekoyka.database import SERVER_ROLE, WARD_ROLE, Database, DatabaseUnavailable, DatabaseUnfit
from ekoyka.errors import Refusal
from ekoyka.feed import Feed
from ekoyka.identity.credentials import PasswordHasher, SettingsIncomplete, load_keys
from ekoyka.identity.operations import create_admin
from ekoyka.imports.facilities import FacilityColumns, import_facilities
from ekoyka.imports.files import BadFile, Report
from ekoyka.imports.stays import StayColumns, import_stays
from ekoyka.manifest import BadDocuments
from ekoyka.observability import configure_logs
from ekoyka.programs import ProgramFailed
from ekoyka.settings import LogFormat, Mode, Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
imports = typer.Typer(no_args_is_help=True, help="Read CSV files into the database.")
app.add_typer(imports, name="import")
trusted = typer.Typer(no_args_is_help=True, help="Trust the operations of client builds.")
app.add_typer(trusted, name="documents")
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
_Result = TypeVar("_Result")
# A server that stops waits so long for what is under way, and for a worker process that does not end by itself:
# with what must be closed after that it is out in 20 seconds.
DRAIN_S, WORKER_S = 10, 18


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
    except (
        SettingsIncomplete,
        embedded.EmbeddedPostgresError,
        DatabaseUnfit,
        backup.BackupError,
        ProgramFailed,
        BadFile,
        BadDocuments,
        Refusal,
    ) as error:
        err.print(f"[red]{escape(error.message('ru') if isinstance(error, Refusal) else str(error))}[/]")
        raise typer.Exit(2) from None
    except DatabaseUnavailable:
        err.print(
            "[red]База данных недоступна: проверьте DATABASE_URL. The database cannot be reached: see DATABASE_URL.[/]"
        )
        raise typer.Exit(2) from None


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
        async with Database(_address(settings), settings, pooled=False) as owned:
            await owned.check_fit()
            if migrated:
                await migrate.upgrade(owned)
        async with Database(_address(settings), settings, pooled=False, role=WARD_ROLE) as database:
            return await work(database)

    with _plainly(), _database(Settings(), _say) as settings:
        return asyncio.run(run(settings))
    raise AssertionError("unreachable")


class _Workers(Multiprocess):
    """uvicorn's worker processes, which end together and in time."""

    def terminate_all(self) -> None:
        # Or whoever connects meanwhile waits for nobody.
        for listening in self.sockets:
            listening.close()
        super().terminate_all()

    def join_all(self) -> None:
        ends = time.monotonic() + WORKER_S
        for worker in self.processes:
            worker.process.join(max(0.0, ends - time.monotonic()))
            if worker.process.is_alive():
                worker.kill()
                worker.join()


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
        config = uvicorn.Config(
            "ekoyka.app:from_environment",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            loop="uvloop" if sys.platform != "win32" else "asyncio",
            http=Intake,
            ws=DirectProtocol,
            ws_max_size=256 * 1024,
            # A frame is made once for all who are sent it; compressing would do it again for each, and
            # keep each socket's window in memory.
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            server_header=False,
            # Whom to believe is our settings' to say (`api/clients.py`), not FORWARDED_ALLOW_IPS'.
            proxy_headers=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
        # uvicorn passes signals on once it has stopped: what comes after it must still be done.
        signal.signal(signal.SIGTERM, _stop_in_order)
        try:
            if settings.workers > 1:
                _Workers(config, [config.bind_socket()]).run()
            else:
                uvicorn.Server(config).run()
        except KeyboardInterrupt:
            pass
        except SystemExit as ended:
            if ended.code:  # it could not begin
                raise typer.Exit(int(ended.code)) from None


@app.command()
def serve() -> None:
    """Serve, by the settings in the environment. Without DATABASE_URL an embedded PostgreSQL is started."""
    with _plainly():
        settings = Settings()
        load_keys(settings)
        with _database(settings, _say) as ready:
            _serve(ready)


@app.command()
def worker() -> None:
    """Do the periodic work: slots, reminders, what lapses. Several at once share it. Stops in order on SIGTERM."""
    # Its libraries take 10 MiB, which the other commands do without.
    from ekoyka.worker import Worker

    async def run(settings: Settings) -> None:
        async with Database(_address(settings), settings) as database:
            await database.check_fit()
            await migrate.upgrade(database)
        async with Database(_address(settings), settings, role=SERVER_ROLE) as database:
            work = asyncio.current_task()
            assert work is not None
            for kind in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(kind, work.cancel)
            # Whose listener finds the connections that have fallen silent: a job would wait for them for ever.
            async with Feed(database):
                await Worker(database, settings).run()

    with _plainly(), _database(Settings(), _say) as settings:
        configure_logs(settings)
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(run(settings))


@app.command(name="demo")
def demonstrate() -> None:
    """Serve a demonstration network: sets up all that is missing, keeps it for the next time."""
    with _plainly():
        settings = Settings().model_copy(update={"mode": Mode.DEMO, "log_format": _demo_log()})
        load_keys(settings)
        with _database(settings, _say) as ready:
            asyncio.run(_prepare(ready))
            # A process of its own: what makes people up takes none of the server's memory, nor need it be there.
            environment = {**os.environ, "DATABASE_URL": _address(ready), "EKOYKA_MODE": Mode.DEMO.value}
            if subprocess.run([sys.executable, "-m", "ekoyka.demo"], env=environment).returncode != 0:
                raise typer.Exit(1)
            _serve(ready)
            out.print("\nОстановлено. Stopped.")


def _demo_log() -> LogFormat:
    return Settings().log_format if "EKOYKA_LOG_FORMAT" in os.environ else LogFormat.CONSOLE


async def _prepare(settings: Settings) -> None:
    async with Database(_address(settings), settings, pooled=False) as database:
        await database.check_fit()
        _say("миграции · migrations")
        await migrate.upgrade(database)


@app.command(name="migrate")
def migrate_command() -> None:
    """Bring the database's schema to the newest migration."""

    async def work(database: Database) -> None:
        _say(f"схема на ревизии · schema at revision {migrate.head()}")

    _with_database(work)


_File = Annotated[Path, typer.Argument(help="The backup; its manifest is the same name and .json.")]


def _kept(work: Callable[[Settings], Coroutine[Any, Any, backup.Manifest]], what: str) -> None:
    with _plainly(), _database(Settings(), _say) as settings:
        made = asyncio.run(work(settings))
        megabytes = made.size_bytes / 1e6
        _say(f"{what}: {megabytes:.1f} MB, таблиц · tables: {len(made.tables)}, строк · rows: {made.rows}")


@app.command(name="backup")
def backup_command(
    file: _File,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write the database to a file (pg_dump's custom format), checked and on the disk before it has its name.

    Servers may go on working. Needs pg_dump and pg_restore that are not older than the server.
    """
    _kept(lambda settings: backup.back_up(settings, file, replace=replace, say=_say), "сохранено · backed up")


@app.command()
def restore(
    file: _File,
    replace: Annotated[
        bool, typer.Option("--replace", help="Into a database that is not empty: what it holds is replaced.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Into a database of its own, which is dropped again: only to see whether it is good.",
        ),
    ] = False,
) -> None:
    """Restore a backup into the empty database of DATABASE_URL: all or nothing, compared row by row, then migrated.

    Stop the servers first; not for --check, which leaves the database alone.
    """
    if check:
        _kept(lambda settings: backup.check(settings, file, say=_say), "хорошая копия · a good backup")
    else:
        _kept(
            lambda settings: backup.restore(settings, file, replace=replace, say=_say),
            "восстановлено · restored",
        )


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
        hashed = await hasher.hash(password, about=(email, name))
        hasher.close()
        async with database.transaction() as session:
            await create_admin(session, email=email, password_hash=hashed, name=name)
        _say("готово · done")

    _with_database(work)


def _imported(work: Callable[[Database, Callable[[int, int], None]], Awaitable[Report]]) -> None:
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("импорт · import", total=None)
        report = _with_database(
            lambda database: work(database, lambda done, of: bar.update(task, completed=done, total=of))
        )
    out.print(str(report), markup=False)
    if report.refused:
        raise typer.Exit(3)


def _option(default: object, description: str, **more: Any) -> Any:
    return typer.Option(help=f"{description} [{default}]", show_default=False, **more)


_F, _S = FacilityColumns(), StayColumns()


@imports.command("facilities")
def import_facilities_command(
    file: Annotated[Path, typer.Argument(help="A register: one row for each facility and type of bed.")],
    key: Annotated[str, _option(_F.key, "Column of the facility's key.")] = _F.key,
    name: Annotated[str, _option(_F.name, "Column of its name.")] = _F.name,
    bed_type: Annotated[str, _option(_F.bed_type, "Column of the beds' type.")] = _F.bed_type,
    beds: Annotated[str, _option(_F.beds, "Column of their number.")] = _F.beds,
    place: Annotated[str, _option(_F.place, "Column of the place.")] = _F.place,
    address: Annotated[str, _option(_F.address, "The address, made of {place}.")] = _F.address,
    time_zone: Annotated[str, _option(_F.time_zone, "IANA time zone of all of them.")] = _F.time_zone,
    beds_per_room: Annotated[
        int, _option(_F.beds_per_room, "Beds in each room made.", min=1, max=100)
    ] = _F.beds_per_room,
    source: Annotated[str, _option(_F.source, "Name of the source; keeps its keys apart.")] = _F.source,
    delimiter: Annotated[str, _option(_F.delimiter, "Between fields.")] = _F.delimiter,
    encoding: Annotated[str, _option(_F.encoding, "Of the file.")] = _F.encoding,
) -> None:
    """Read facilities with their beds. Exits 3 if rows were refused; they are listed."""
    columns = FacilityColumns(
        key=key,
        name=name,
        bed_type=bed_type,
        beds=beds,
        place=place,
        address=address,
        time_zone=time_zone,
        beds_per_room=beds_per_room,
        source=source,
        delimiter=delimiter,
        encoding=encoding,
    )
    _imported(lambda database, progress: import_facilities(database, file, columns, progress=progress))


@imports.command("stays")
def import_stays_command(
    folder: Annotated[
        Path, typer.Argument(help="Folder of admissions.csv, patients.csv, diagnoses_icd.csv.")
    ],
    admission: Annotated[str, _option(_S.admission, "Column of the admission's key.")] = _S.admission,
    patient: Annotated[str, _option(_S.patient, "Column of the patient's key.")] = _S.patient,
    admitted: Annotated[str, _option(_S.admitted, "Column of the time of admission.")] = _S.admitted,
    discharged: Annotated[str, _option(_S.discharged, "Column of the time of discharge.")] = _S.discharged,
    time_format: Annotated[
        str, _option(_S.time_format.replace("[", ""), "Their form (strptime).")
    ] = _S.time_format,
    shift_years: Annotated[
        int, _option(_S.shift_years, "Years by which times are moved back.")
    ] = _S.shift_years,
    source: Annotated[str, _option(_S.source, "Name of the source; keeps its keys apart.")] = _S.source,
    into: Annotated[str, _option(_S.into, "Source of the facilities that take them.")] = _S.into,
    delimiter: Annotated[str, _option(_S.delimiter, "Between fields.")] = _S.delimiter,
    encoding: Annotated[str, _option(_S.encoding, "Of the files.")] = _S.encoding,
) -> None:
    """Replay admissions through the API's own operations. Exits 3 if rows were refused; they are listed."""
    columns = StayColumns(
        admission=admission,
        patient=patient,
        admitted=admitted,
        discharged=discharged,
        time_format=time_format,
        shift_years=shift_years,
        source=source,
        into=into,
        delimiter=delimiter,
        encoding=encoding,
    )
    _imported(lambda database, progress: import_stays(database, folder, columns, progress=progress))


def _short(client: str) -> str:
    if not 1 <= len(client) <= 100:
        raise typer.BadParameter("1 to 100 characters")
    return client


_Client = Annotated[
    str, typer.Option(help="Name and version of the client's build, such as web-1.4.0.", callback=_short)
]


@trusted.command("register")
def register_documents(
    paths: Annotated[list[Path], typer.Argument(help="GraphQL files, JSON manifests, or folders of them.")],
    client: _Client,
) -> None:
    """Register the operations of a client's build, all or none. Repeating it changes nothing."""

    async def work(database: Database) -> int:
        async with database.transaction() as session:
            return await documents.register(session, client, (item.text for item in found))

    with _plainly():
        found = manifest.read(build_schema()._schema, paths)
    added = _with_database(work)
    for item in found:
        out.print(f"{item.id}  {item.operations}", markup=False)
    _say(f"документов · documents: {len(found)}, новых · new: {added}")


@trusted.command("list")
def list_documents() -> None:
    """Clients, how many documents each has registered, and since when."""

    async def work(database: Database) -> list[Any]:
        return list(
            await database.fetch(
                "SELECT client, count(*) AS documents, min(registered_at) AS since "
                "FROM trusted_document GROUP BY client ORDER BY since, client"
            )
        )

    for row in _with_database(work):
        out.print(f"{row['since']:%Y-%m-%d}  {row['documents']:>5}  {row['client']}", markup=False)


@trusted.command("forget")
def forget_documents(client: _Client) -> None:
    """Trust a client's documents no more; those that another client registered too stay trusted.

    Running servers forget when they are restarted.
    """

    async def work(database: Database) -> int:
        async with database.transaction() as session:
            return await documents.forget(session, client)

    _say(f"забыто · forgotten: {_with_database(work)}")


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
