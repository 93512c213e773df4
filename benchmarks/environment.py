"""Where everything runs: a PostgreSQL as a real server would have it, the data at each scale, the node peers."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from benchmarks import dataset
from benchmarks.servers import NODE_PEERS, TOKEN_KEY
from ekoyka import embedded, migrate
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import Tokens

# What an administrator would set on a machine of 8 GiB; the rest is PostgreSQL's own.
SETTINGS = {
    "shared_buffers": "1GB",
    "effective_cache_size": "4GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "256MB",
    "random_page_cost": "1.1",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
}
_MARK = "benchmark data"


@dataclass(frozen=True)
class Environment:
    """A PostgreSQL with databases to measure on."""

    server: embedded.EmbeddedServer

    @property
    def postmaster(self) -> int:
        """The process id of PostgreSQL's first process."""
        return int((self.server.data_dir / "cluster" / "postmaster.pid").read_text().split("\n")[0])

    @property
    def programs(self) -> Path:
        """The folder of PostgreSQL's programs."""
        return Path(f"/proc/{self.postmaster}/exe").readlink().parent

    def database(self, scale: float) -> str:
        """The address of the database with the data of this scale; built where it is not there yet."""
        url = self.server.url(f"bench_{scale:g}".replace(".", "_"))
        asyncio.run(_ensure(self.server.url("postgres"), url, scale))
        return url


@contextmanager
def environment(folder: Path) -> Iterator[Environment]:
    """PostgreSQL runs while the block lasts; its data are kept for the next time."""
    with embedded.running(folder, settings=SETTINGS, say=lambda text: print(f"· {text}")) as server:
        yield Environment(server)


async def _ensure(maintenance: str, url: str, scale: float) -> None:
    name = url.partition("?")[0].rpartition("/")[2]
    # Data of an older form are made again.
    wanted = f"{_MARK} {migrate.head()} {scale:g} {dataset.FORM}"
    connection = await asyncpg.connect(maintenance)
    try:
        found = await connection.fetchval(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1", name
        )
        if found == wanted:
            return
        print(f"· building the data at scale {scale:g} (once)…")
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' "
            "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
        )
        await dataset.build(url, scale=scale)
        await _add_functions(url)
        await connection.execute(f"COMMENT ON DATABASE {name} IS '{wanted}'")
    finally:
        await connection.close()


async def _add_functions(url: str) -> None:
    """What PostGraphile needs beside the tables."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute((NODE_PEERS / "postgraphile.sql").read_text())
    finally:
        await connection.close()


def token(*, ttl_s: int = 7200) -> str:
    """An access token of the data's superadministrator."""
    return _token(Actor(account_id=dataset.ADMIN, auth_version=1, superadmin=True), ttl_s)


def doctors_token(*, ttl_s: int = 7200) -> str:
    """An access token of the data's doctor."""
    places = frozenset(range(1, dataset.BOARDS + 1))
    return _token(Actor(account_id=dataset.DOCTOR, auth_version=1, doctor_of=places), ttl_s)


def _token(actor: Actor, ttl_s: int) -> str:
    return Tokens([TOKEN_KEY], issuer="ekoyka", ttl_s=ttl_s).issue(actor).text


def install_node_peers() -> bool:
    """Whether there is node, and the peers on it are installed."""
    if shutil.which("npm") is None or not (NODE_PEERS / "package-lock.json").exists():
        return False
    mark = NODE_PEERS / "node_modules" / ".installed"
    lock = (NODE_PEERS / "package-lock.json").read_text()
    if not mark.exists() or mark.read_text() != lock:
        print("· installing the peers on node (once)…")
        subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=NODE_PEERS, check=True
        )
        mark.write_text(lock)
    return True


def versions() -> str:
    """What the figures were got with, in a line or two."""
    node = shutil.which("node")
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        + (f", node {_says(node, '--version')}" if node else ", no node")
        + "".join(f", {name} {version}" for name, version in _node_versions())
    )


def _says(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _node_versions() -> list[tuple[str, str]]:
    found = []
    for name in ("postgraphile", "mercurius", "@apollo/server", "graphql"):
        manifest = NODE_PEERS / "node_modules" / name / "package.json"
        if manifest.exists():
            found.append((name, json.loads(manifest.read_text())["version"]))
    return found


DATA = Path(os.environ.get("EKOYKA_BENCH_DIR", ".data/benchmarks"))
