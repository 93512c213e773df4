"""A PostgreSQL of its own, durable as in production, that can be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ekoyka import embedded
from tests.chaos.history import until

# Small, so that a small disk holds it; and so that a full one is soon noticed.
SETTINGS = {
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "shared_buffers": "64MB",
    "max_connections": "100",
}
DISK_MB = 448


class Postgres:
    """One cluster in one folder; it may be down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server: embedded.EmbeddedServer | None = None

    async def start(self) -> None:
        """It answers, whatever was done to it before."""
        await self.stop()
        self._server = await asyncio.to_thread(embedded.start, self.folder, durable=True, settings=SETTINGS)

    async def stop(self) -> None:
        """It does not run any more."""
        if self._server is not None:
            await asyncio.to_thread(embedded.stop, self._server)
            self._server = None

    @property
    def url(self) -> str:
        """The address of its database, around all wires."""
        assert self._server is not None
        return self._server.url()

    @property
    def superuser_url(self) -> str:
        """The same, for whoever may do everything."""
        return self.url.replace(f"//{embedded.ROLE}@", "//postgres@")

    @property
    def socket(self) -> Path:
        """Where it listens."""
        assert self._server is not None
        return self._server.socket_dir / f".s.PGSQL.{self._server.port}"

    @property
    def postmaster(self) -> int:
        """The process that all others come from."""
        return int((self.folder / "cluster" / "postmaster.pid").read_text().split()[0])

    def runs(self) -> bool:
        """Whether it runs, as opposed to having given up."""
        try:
            os.kill(self.postmaster, 0)
        except (OSError, ValueError, IndexError):
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """To the postmaster: INT is a fast shutdown, QUIT an immediate one."""
        os.kill(self.postmaster, number)

    def kill(self) -> None:
        """The postmaster and every process that it has started are killed."""
        postmaster = self.postmaster
        os.kill(postmaster, signal.SIGSTOP)  # it starts no others meanwhile
        for pid in [postmaster, *children(postmaster)]:
            _kill(pid)

    def kill_a_backend(self, pid: int) -> None:
        """PostgreSQL does not trust what the killed process has left, and starts anew by itself."""
        _kill(pid)

    def keep_log(self, path: Path) -> None:
        """What it has said since it was last started, and before, stands there."""
        logs = [self.folder / name for name in ("postgres.log.1", "postgres.log")]
        path.write_bytes(b"".join(log.read_bytes() for log in logs if log.exists()))

    async def ended(self) -> None:
        """None of its processes is there any more."""
        assert await until(lambda: not self.runs(), 60), "PostgreSQL does not stop"


def children(pid: int) -> list[int]:
    """The processes that this one has started."""
    try:
        return [int(item) for item in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def descendants(pid: int) -> list[int]:
    """The processes that this one has started, and theirs."""
    return [item for child in children(pid) for item in (child, *descendants(child))]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """The folder is a small disk, in memory. Raises `OSError` where nothing may be mounted."""
    folder.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    if mount is None:
        raise OSError("there is no mount here")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0755", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield
    finally:
        for _ in range(50):
            if subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.1)


class Filler:
    """A file that takes whatever room a disk has left."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "filler"

    def fill(self) -> None:
        """There is no room for anybody else."""
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (1 << 20, 1 << 12):
                block = bytes(size)
                try:
                    while os.write(handle, block) == size:
                        pass
                except OSError:
                    continue
        finally:
            os.close(handle)

    def free(self) -> None:
        """The room is there again."""
        self._path.unlink(missing_ok=True)
