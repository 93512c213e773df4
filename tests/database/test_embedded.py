"""The embedded PostgreSQL, on the real programs: what a first try, a crash and a second owner meet."""

import asyncio
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import asyncpg
import pytest

from ekoyka import embedded

REPOSITORY = Path(embedded.__file__).parent.parent

OWNER = """
import sys, time
from pathlib import Path
from ekoyka import embedded
server = embedded.start(Path(sys.argv[1]), durable=False)
try:
    print(server.url(), flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print((server.data_dir / "cluster" / "postmaster.pid").exists(), flush=True)
    embedded.stop(server)
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One initialised folder for all tests that only start and stop; its name is as unkind as can be."""
    folder = tmp_path_factory.mktemp("embedded") / "Мои документы" / 'Олег\'s "данные", койки'
    with embedded.running(folder, durable=False) as server:
        fetch(server.url(), "CREATE TABLE kept (name text UNIQUE)")
    return folder


def fetch(url: str, sql: str, *arguments: object) -> list[asyncpg.Record]:
    async def connected() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    return asyncio.run(connected())


def owner_process(data_dir: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process that owns the folder, and its server's address."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert owner.stdout is not None
    return owner, owner.stdout.readline().strip()


def kill(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.communicate()


def postmaster_pid(data_dir: Path) -> int:
    return int((data_dir / "cluster" / "postmaster.pid").read_text().splitlines()[0])


def anything_runs_on(data_dir: Path) -> bool:
    """Whether any process of a server still holds the lock that all of them inherit."""
    with (data_dir / "server.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def wait_for_the_recovery(data_dir: Path) -> None:
    log = data_dir / "postgres.log"
    deadline = time.monotonic() + 60
    while log.read_text().count("ready to accept connections") < 2 and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_cold_start_says_what_it_does_and_its_database_knows_cyrillic(tmp_path: Path) -> None:
    said: list[str] = []

    with embedded.running(tmp_path / "new", say=said.append) as server:
        (row,) = fetch(
            server.url(),
            "SELECT lower('ЁЖ') AS lowered, 'Ёж' ILIKE 'ёж' AS alike, current_setting('fsync') AS fsync, "
            "current_setting('TimeZone') AS zone, current_setting('listen_addresses') AS tcp, "
            "(SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser",
        )

    assert dict(row) == {
        "lowered": "ёж",
        "alike": True,
        "fsync": "on",
        "zone": "UTC",
        "tcp": "",
        "superuser": False,
    }
    assert said == ["initialising database (once)…", f"starting PostgreSQL {server.version}…"]


def test_a_second_start_keeps_the_data_and_initialises_nothing(data_dir: Path) -> None:
    with embedded.running(data_dir, durable=False) as server:
        fetch(server.url(), "INSERT INTO kept VALUES ('второй запуск')")
    said: list[str] = []

    with embedded.running(data_dir, durable=False, say=said.append) as server:
        kept = fetch(server.url(), "SELECT FROM kept WHERE name = 'второй запуск'")

    assert len(kept) == 1
    assert said == [f"starting PostgreSQL {server.version}…"]


def test_the_embedded_role_may_create_databases_that_know_cyrillic(data_dir: Path) -> None:
    with embedded.running(data_dir, durable=False) as server:
        fetch(server.url(), 'CREATE DATABASE "палата 6"')
        (row,) = fetch(server.url("палата 6"), "SELECT lower('ЁЖ') AS lowered")
        fetch(server.url(), 'DROP DATABASE "палата 6" WITH (FORCE)')

    assert row["lowered"] == "ёж"


def test_a_dropped_database_is_created_again(data_dir: Path) -> None:
    with embedded.running(data_dir, durable=False) as server:
        fetch(server.url("postgres"), 'ALTER DATABASE "ekoyka" RENAME TO aside')
    with embedded.running(data_dir, durable=False) as server:
        (row,) = fetch(server.url(), "SELECT lower('ЁЖ') AS lowered")
        fetch(server.url("postgres"), 'DROP DATABASE "ekoyka"')
        fetch(server.url("postgres"), 'ALTER DATABASE aside RENAME TO "ekoyka"')

    assert row["lowered"] == "ёж"


def test_a_path_longer_than_a_socket_may_have_works(tmp_path: Path) -> None:
    long = tmp_path / "/".join(["очень-длинная-папка"] * 8)

    with embedded.running(long, durable=False) as server:
        assert fetch(server.url(), "SELECT 1 AS one")[0]["one"] == 1


def test_a_long_temporary_folder_still_leaves_room_for_the_socket(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("t" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    with embedded.running(data_dir, durable=False) as server:
        assert fetch(server.url(), "SELECT 1 AS one")[0]["one"] == 1


def test_stop_leaves_no_process_and_no_socket_and_may_be_repeated(data_dir: Path) -> None:
    server = embedded.start(data_dir, durable=False)
    pid = postmaster_pid(data_dir)
    assert server.socket_dir.stat().st_mode & 0o777 == 0o700

    embedded.stop(server)
    embedded.stop(server)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not anything_runs_on(data_dir)
    assert not server.socket_dir.exists()


def test_the_environment_of_another_postgresql_does_not_mislead(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGDATA": "/nowhere", "LC_ALL": "none"}.items():
        monkeypatch.setenv(name, value)

    with embedded.running(data_dir, durable=False) as server:
        assert fetch(server.url(), "SELECT 1 AS one")[0]["one"] == 1


def test_the_server_ends_by_itself_when_its_owner_was_killed(data_dir: Path) -> None:
    owner, _ = owner_process(data_dir)
    assert anything_runs_on(data_dir)

    kill(owner)

    deadline = time.monotonic() + 60
    while anything_runs_on(data_dir) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not anything_runs_on(data_dir)
    assert not (data_dir / "cluster" / "postmaster.pid").exists()


def test_a_start_right_after_a_killed_owner_keeps_what_was_committed(data_dir: Path) -> None:
    owner, url = owner_process(data_dir)
    fetch(url, "INSERT INTO kept VALUES ('до убийства')")
    kill(owner)

    with embedded.running(data_dir, durable=False) as server:
        assert len(fetch(server.url(), "SELECT FROM kept WHERE name = 'до убийства'")) == 1


def test_a_server_that_lost_owner_and_supervisor_is_replaced(data_dir: Path) -> None:
    owner, _ = owner_process(data_dir)
    orphan = postmaster_pid(data_dir)
    orphans_socket_dir = Path((data_dir / "cluster" / "postmaster.pid").read_text().splitlines()[4])
    os.kill(os.getsid(orphan), signal.SIGKILL)  # the supervisor leads the session
    kill(owner)
    assert orphans_socket_dir.exists()
    said: list[str] = []

    with embedded.running(data_dir, durable=False, say=said.append) as server:
        assert postmaster_pid(data_dir) != orphan
        assert len(fetch(server.url(), "SELECT 1")) == 1

    assert "stopping the PostgreSQL of an earlier run…" in said
    assert not orphans_socket_dir.exists()


def test_stop_ends_a_server_whose_supervisor_was_killed(data_dir: Path) -> None:
    server = embedded.start(data_dir, durable=False)
    os.kill(os.getsid(postmaster_pid(data_dir)), signal.SIGKILL)

    embedded.stop(server)

    assert not anything_runs_on(data_dir)
    assert not server.socket_dir.exists()


def test_stop_ends_a_server_that_hangs_in_its_fast_shutdown(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "FAST_STOP_PATIENCE_S", 0.1)
    with embedded.running(data_dir, durable=False) as server:
        as_superuser = server.url().replace("ekoyka@", "postgres@")
        sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        os.kill(fetch(as_superuser, sql)[0]["pid"], signal.SIGSTOP)

    assert not anything_runs_on(data_dir)


def test_a_killed_postgresql_is_started_again_with_its_data(data_dir: Path) -> None:
    with embedded.running(data_dir) as server:
        fetch(server.url(), "INSERT INTO kept VALUES ('до падения')")
        os.kill(postmaster_pid(data_dir), signal.SIGKILL)

    with embedded.running(data_dir, durable=False) as server:
        assert len(fetch(server.url(), "SELECT FROM kept WHERE name = 'до падения'")) == 1


def test_a_stale_pid_that_now_belongs_to_a_stranger_is_ignored(data_dir: Path) -> None:
    cluster = data_dir / "cluster"
    # PostgreSQL itself refuses to start only if the stranger runs as its own user.
    stranger = subprocess.Popen(["sleep", "600"], user=cluster.stat().st_uid)
    (cluster / "postmaster.pid").write_text(f"{stranger.pid}\n{cluster}\n1\n5432\n/tmp\n\n1 1\nready\n")

    try:
        with embedded.running(data_dir, durable=False) as server:
            assert fetch(server.url(), "SELECT 1 AS one")[0]["one"] == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_second_owner_is_told_who_holds_the_folder(data_dir: Path) -> None:
    owner, url = owner_process(data_dir)

    with pytest.raises(embedded.EmbeddedPostgresError, match=rf"in use by process {owner.pid}\b"):
        embedded.start(data_dir, durable=False)

    assert fetch(url, "SELECT 1 AS one")[0]["one"] == 1
    kill(owner)


def test_ctrl_c_reaches_the_owner_and_not_postgresql(data_dir: Path) -> None:
    owner, _ = owner_process(data_dir)

    os.killpg(owner.pid, signal.SIGINT)

    postgres_outlived_the_signal, _ = owner.communicate()
    assert postgres_outlived_the_signal.strip() == "True"
    assert owner.returncode == 0
    assert not anything_runs_on(data_dir)


def test_the_log_holds_no_value_and_no_statement(data_dir: Path) -> None:
    with embedded.running(data_dir, durable=False) as server:
        for failing in (
            "SELECT 'секрет'::int",
            "INSERT INTO kept VALUES ('секрет'), ('секрет')",
            "SELECT 'секрет' FROM missing",
            "DO $$ BEGIN RAISE WARNING 'секрет'; END $$; SELECT 1/0",
        ):
            with pytest.raises(asyncpg.PostgresError):
                fetch(server.url(), failing)

        async def until_the_server_runs(pid: int) -> None:
            connection = await asyncpg.connect(server.url())
            sql = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1"
            while not await connection.fetchval(sql, pid):  # noqa: ASYNC110  (another process decides)
                await asyncio.sleep(0.01)
            await connection.close()

        async def crash_a_backend() -> None:
            connection = await asyncpg.connect(server.url())
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            running = asyncio.create_task(connection.fetch("SELECT pg_sleep(600), 'секрет'"))
            await until_the_server_runs(pid)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await running
            connection.terminate()

        asyncio.run(crash_a_backend())
        wait_for_the_recovery(data_dir)

    log = (data_dir / "postgres.log").read_text()
    assert "was terminated by signal 9" in log
    assert "секрет" not in log
    assert "SELECT" not in log


def test_data_of_another_major_version_is_refused_by_name(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    (cluster / "PG_VERSION").write_text("15\n")

    with pytest.raises(embedded.EmbeddedPostgresError, match=r"was made by PostgreSQL 15.* brings 18"):
        embedded.start(tmp_path)

    assert (cluster / "PG_VERSION").read_text() == "15\n"


def test_data_without_a_version_is_called_damaged_and_left_alone(tmp_path: Path) -> None:
    base = tmp_path / "cluster" / "base"
    base.mkdir(parents=True)

    with pytest.raises(embedded.EmbeddedPostgresError, match="damaged"):
        embedded.start(tmp_path)

    assert base.exists()


def test_an_interrupted_initialisation_is_done_again(tmp_path: Path) -> None:
    half = tmp_path / "cluster.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")

    with embedded.running(tmp_path, durable=False) as server:
        assert fetch(server.url(), "SELECT 1 AS one")[0]["one"] == 1

    assert not half.exists()


def test_a_failed_start_shows_the_end_of_the_log_and_leaves_nothing_behind(data_dir: Path) -> None:
    configuration = data_dir / "cluster" / "postgresql.conf"
    good = configuration.read_text()
    configuration.write_text(good + "no_such_setting = 1\n")

    with pytest.raises(
        embedded.EmbeddedPostgresError, match=r"(?s)did not start .*no_such_setting"
    ) as refused:
        embedded.start(data_dir, durable=False)

    configuration.write_text(good)
    assert str(data_dir / "postgres.log") in str(refused.value)
    assert not anything_runs_on(data_dir)
    embedded.stop(embedded.start(data_dir, durable=False))


def test_without_the_wheel_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda _name: None)

    with pytest.raises(embedded.EmbeddedPostgresError, match=r"pip install 'ekoyka\[demo\]'.*DATABASE_URL"):
        embedded.start(tmp_path)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(2**40, 2**40, 0))

    with pytest.raises(embedded.EmbeddedPostgresError, match=r"disk of .* is full"):
        embedded.start(tmp_path)


def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(embedded.EmbeddedPostgresError, match="EKOYKA_DATA_DIR"):
        embedded.start(tmp_path / "file")


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, **_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    # Root, as whom the tests may run, is refused no real folder.
    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(embedded.EmbeddedPostgresError, match=r"No permission for .*closed"):
        embedded.start(tmp_path / "closed")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is dropped to another user")
def test_root_drops_to_a_user_who_reaches_a_folder_closed_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    with embedded.running(tmp_path / "data", durable=False) as server:
        assert fetch(server.url(), "SELECT 1 AS one")[0]["one"] == 1
        assert (server.data_dir / "cluster").stat().st_uid != 0

    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own what PostgreSQL must not")
def test_data_that_belongs_to_root_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "PG_VERSION").write_text("18\n")

    with pytest.raises(embedded.EmbeddedPostgresError, match=r"belongs to root.*chown"):
        embedded.start(tmp_path)
