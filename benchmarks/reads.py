"""The reads: all servers side by side on the same data, the same questions, in turns."""

from __future__ import annotations

import http.client
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks import load
from benchmarks.answers import canonical
from benchmarks.operations import TEXTS, variables
from benchmarks.peers import postgraphile_operations
from benchmarks.servers import Server, postgres_cpu_s

TURNS = 32


class Differs(Exception):
    """A server gave other data than EKoyka; the text says which and where."""


@dataclass
class Figures:
    """One server's medians for one read at one concurrency: requests per second, seconds."""

    rates: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    postgres_cpu: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def p50_s(self) -> float:
        return median(self.p50s)


Results = Mapping[tuple[str, str, int], Figures]
"""By server, read and concurrency."""


def body(server: str, read: str, turn: int) -> bytes:
    """The request's body of a read's turn, as this server wants it."""
    given: Mapping[str, object] = variables(read, turn)
    text = TEXTS[read]
    if server == "PostGraphile":
        given, text = postgraphile_operations.variables(read, given), postgraphile_operations.OPERATIONS[read]
    return json.dumps(
        {"operationName": read.capitalize(), "query": text, "variables": given}, ensure_ascii=False
    ).encode()


def requests(server: Server, read: str, token: str) -> list[bytes]:
    """The read's requests, as they go over the wire."""
    ours = server.kind.name.startswith("ekoyka")
    return [
        load.request(server.port, body(server.kind.name, read, turn), token if ours else None)
        for turn in range(TURNS)
    ]


def ask(server: Server, read: str, turn: int, token: str) -> Any:
    """The data of one answer, in a form that can be compared. Raises `load.BadAnswer`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"content-type": "application/json"}
    if server.kind.name.startswith("ekoyka"):
        headers["authorization"] = f"Bearer {token}"
    connection.request("POST", "/graphql", body(server.kind.name, read, turn), headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    whole = json.loads(text)
    if answer.status != 200 or whole.get("errors"):
        raise load.BadAnswer(f"{server.kind.name}, {read}: {text[:500]!r}")
    data = whole["data"]
    if server.kind.name == "PostGraphile":
        data = postgraphile_operations.answer(read, data)
    return canonical(data)


def verify(ours: Server, others: Iterable[Server], reads: Sequence[str], token: str) -> int:
    """All servers give the same data; how many answers were compared. Raises `Differs`."""
    compared = 0
    for read in reads:
        for turn in range(5):
            wanted = ask(ours, read, turn, token)
            if not wanted or not next(iter(wanted.values())):
                raise Differs(f"{read}, turn {turn}: there is nothing to compare")
            for other in others:
                got = ask(other, read, turn, token)
                if got != wanted:
                    raise Differs(f"{other.kind.name}, {read}, turn {turn}: {_difference(wanted, got)}")
                compared += 1
    return compared


def _difference(wanted: Any, got: Any, path: str = "data") -> str:
    if isinstance(wanted, dict) and isinstance(got, dict) and wanted.keys() == got.keys():
        return next(
            _difference(wanted[key], got[key], f"{path}.{key}") for key in wanted if wanted[key] != got[key]
        )
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        number = next(place for place, item in enumerate(wanted) if item != got[place])
        return _difference(wanted[number], got[number], f"{path}[{number}]")
    return f"at {path}: {str(wanted)[:200]} is {str(got)[:200]}"


def measure(
    servers: Sequence[Server],
    reads: Sequence[str],
    *,
    concurrencies: Sequence[int],
    rounds: int,
    seconds: float,
    postmaster: int,
    token: str,
) -> Results:
    """Rounds in which the servers take turns at each read, so that what disturbs one disturbs all."""
    results: defaultdict[tuple[str, str, int], Figures] = defaultdict(Figures)
    for read in reads:
        wire = {server.kind.name: requests(server, read, token) for server in servers}
        for server in servers:
            load.run(server.port, wire[server.kind.name], concurrency=2, seconds=min(1.0, seconds))
        too_slow: set[str] = set()
        for number in range(rounds):
            # Each round begins with another server.
            for server in (*servers[number % len(servers) :], *servers[: number % len(servers)]):
                if server.kind.name in too_slow:
                    continue
                for concurrency in concurrencies:
                    before = server.cpu_s(), postgres_cpu_s(postmaster)
                    got = load.run(
                        server.port, wire[server.kind.name], concurrency=concurrency, seconds=seconds
                    )
                    after = server.cpu_s(), postgres_cpu_s(postmaster)
                    figures = results[server.kind.name, read, concurrency]
                    answers = max(1, len(got.latencies_s))
                    figures.rates.append(got.rate)
                    figures.p50s.append(got.percentile_s(0.5) if got.latencies_s else seconds)
                    figures.server_cpu.append((after[0] - before[0]) / answers)
                    figures.postgres_cpu.append((after[1] - before[1]) / answers)
                    if got.seconds > 3 * seconds + 1:
                        too_slow.add(server.kind.name)  # one round tells enough
    return results


def table(results: Results, reads: Sequence[str], names: Sequence[str], concurrency: int) -> str:
    """Medians as text: answers a second, and processor time of server and PostgreSQL for one."""
    lines = [
        f"concurrency {concurrency}".ljust(16)
        + "".join(name.rjust(24) for name in names)
        + "\n"
        + "".ljust(16)
        + "per s  (server + pg ms)".rjust(24) * len(names)
    ]
    for read in reads:
        cells = []
        for name in names:
            figures = results[name, read, concurrency]
            spent = f"({median(figures.server_cpu) * 1e3:.2f} + {median(figures.postgres_cpu) * 1e3:.2f})"
            cells.append(f"{figures.rate:8.0f}  {spent}".rjust(24))
        lines.append(read.ljust(16) + "".join(cells))
    return "\n".join(lines)
