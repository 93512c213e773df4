"""The servers that are measured: each one process on one core, and what it spends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
NODE_PEERS = HERE / "peers"
TOKEN_KEY = "benchmark-" * 5
_START_PATIENCE_S = 60
_TICKS = os.sysconf("SC_CLK_TCK")


class NotStarted(Exception):
    """A server did not start; the text ends with what it said last."""


@dataclass(frozen=True)
class Kind:
    """A server that can be started: its command, and what it needs to be told."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def kinds() -> dict[str, Kind]:
    """All servers by name; those on node are there only where node is."""
    python = sys.executable
    ours = Kind(
        "ekoyka",
        (python, "-m", "ekoyka", "serve"),
        {
            "EKOYKA_TOKEN_KEYS": TOKEN_KEY,
            "EKOYKA_LOG_LEVEL": "WARNING",
            "EKOYKA_ACCESS_TOKEN_TTL_S": "3600",
            "EKOYKA_COST_PER_MINUTE": "0",  # one account asks for more than any does
            "EKOYKA_WORKER_INSIDE": "false",
        },
    )
    found = [
        ours,
        Kind("floor: JSON", (python, "-m", "benchmarks.peers.floor", "json"), {}),
        Kind("floor: rows", (python, "-m", "benchmarks.peers.floor", "rows"), {}),
        Kind("Strawberry", (python, "-m", "benchmarks.peers.strawberry_orm"), {}),
    ]
    if node := shutil.which("node"):
        production = {"NODE_ENV": "production"}
        found += [
            Kind(name, (node, str(NODE_PEERS / file)), production)
            for name, file in (
                ("PostGraphile", "postgraphile.mjs"),
                ("Mercurius", "mercurius.mjs"),
                ("Apollo", "apollo.mjs"),
            )
        ]
    return {kind.name: kind for kind in found}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A running server."""

    kind: Kind
    port: int
    process: subprocess.Popen[bytes]
    ready_after_s: float

    def cpu_s(self) -> float:
        """Seconds of processor time since it started, its threads' too."""
        return cpu_s(self.process.pid)

    def peak_bytes(self) -> int:
        """The most memory that was ever resident."""
        return _status_bytes(self.process.pid, "VmHWM")

    def resident_bytes(self) -> int:
        """The memory that is resident now."""
        return _status_bytes(self.process.pid, "VmRSS")


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def postgres_cpu_s(postmaster: int) -> float:
    """Seconds of processor time of a PostgreSQL: its processes, and those that have ended."""
    total = cpu_s(postmaster)
    fields = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()
    total += (int(fields[13]) + int(fields[14])) / _TICKS
    for child in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
        try:
            total += cpu_s(int(child))
        except FileNotFoundError:
            continue
    return total


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


@contextmanager
def running(kind: Kind, database_url: str, folder: Path, **more: str) -> Iterator[Server]:
    """The server runs on core 0 while the block lasts. Raises `NotStarted`."""
    port = free_port()
    log = folder / f"{kind.name.replace(' ', '-').replace(':', '')}.log"
    environment = {
        **os.environ,
        **kind.environment,
        **more,
        "PORT": str(port),
        "EKOYKA_PORT": str(port),
        "EKOYKA_DATA_DIR": str(folder / "data"),
        "DATABASE_URL": database_url,
        "PYTHONPATH": str(HERE.parent),
    }
    started = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            kind.command,
            env=environment,
            cwd=HERE.parent,
            stdout=output,
            stderr=output,
            preexec_fn=_on_core_0,
        )
    try:
        _wait_until_it_answers(process, port, log)
        yield Server(kind, port, process, time.perf_counter() - started)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _on_core_0() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until a POST is answered with something else than 503: until then EKoyka waits for its database."""
    ends = time.monotonic() + _START_PATIENCE_S
    probe = (
        b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 24\r\nConnection: close\r\n\r\n{"query":"{__typename}"}'
    )
    while time.monotonic() < ends and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(probe)
                answer = connection.recv(64)
                if answer.startswith(b"HTTP/1.1") and not answer.startswith(b"HTTP/1.1 503"):
                    return
        except OSError:
            pass
        time.sleep(0.02)
    said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    raise NotStarted(f"{log.stem} did not start:\n{said}")
