"""Proof from outside: tools that others wrote, against the running server and the schema.

    python -m tests.external            # installs them from the registries into .data/external, once
    python -m tests.external audit sdl  # some of them

Starts an embedded PostgreSQL with the demonstration network and a server in production mode, and prints one
line for each tool with what it said. Exits with 1 if any of them objects.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from ekoyka import embedded
from tests.servers import free_port

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEPT = ROOT / ".data" / "external"
NODE = KEPT / "node"
PYTHON = KEPT / "venv" / "bin"
EXAMPLES = os.environ.get("EXAMPLES", "50")


@dataclass(frozen=True)
class Running:
    """The server, and who asks."""

    url: str
    token: str


@dataclass(frozen=True)
class Said:
    """Whether a tool is content, and its figure."""

    holds: bool
    figure: str
    whole: str = ""


def main() -> int:
    wanted = sys.argv[1:] or list(TOOLS)
    if unknown := set(wanted) - TOOLS.keys():
        print(f"There is no {', '.join(sorted(unknown))}; there are {', '.join(TOOLS)}.")
        return 2
    _install()
    bad = 0
    with _server() as server:
        for name in wanted:
            started = time.monotonic()
            said = TOOLS[name](server)
            bad += not said.holds
            took = time.monotonic() - started
            print(f"{name:12} {'holds' if said.holds else 'OBJECTS':8} {said.figure}  ({took:.0f} s)")
            if not said.holds:
                print(said.whole)
    return 1 if bad else 0


def _install() -> None:
    """The tools are there, as pinned beside this file."""
    assert shutil.which("npm"), "node 20 is needed"
    KEPT.mkdir(parents=True, exist_ok=True)
    shutil.copytree(HERE / "node", NODE, dirs_exist_ok=True)
    stamp = KEPT / "installed"
    pins = (HERE / "requirements.lock").read_text() + (HERE / "node" / "package-lock.json").read_text()
    if stamp.exists() and stamp.read_text() == pins:
        return
    print("· the tools, once")
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=NODE, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", KEPT / "venv"], check=True)
    subprocess.run(
        [PYTHON / "pip", "install", "-q", "--require-hashes", "-r", HERE / "requirements.lock"], check=True
    )
    stamp.write_text(pins)


@contextmanager
def _server() -> Iterator[Running]:
    """The demonstration network on a PostgreSQL of its own, served as in production."""
    port = free_port()
    with embedded.running(KEPT / "data", say=lambda _: None) as database:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EKOYKA_")},
            "DATABASE_URL": database.url(),
            "EKOYKA_DATA_DIR": str(KEPT / "data"),
            "EKOYKA_PORT": str(port),
            "EKOYKA_TOKEN_KEYS": "external-" * 6,
            "EKOYKA_ACCESS_TOKEN_TTL_S": "3600",
            "EKOYKA_COST_PER_MINUTE": "0",  # one account asks for more than any does
            "EKOYKA_LOG_LEVEL": "WARNING",
        }
        ekoyka = [sys.executable, "-m", "ekoyka"]
        subprocess.run([*ekoyka, "migrate"], env=environment, check=True, capture_output=True)
        demonstration = {**environment, "EKOYKA_MODE": "demo"}
        subprocess.run([*ekoyka[:2], "ekoyka.demo"], env=demonstration, check=True, capture_output=True)
        with (KEPT / "server.log").open("wb") as log:
            server = subprocess.Popen([*ekoyka, "serve"], env=environment, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(300):
                try:
                    if httpx.get(f"{url}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            answer = httpx.post(
                f"{url}/auth/token",
                data={
                    "grant_type": "password",
                    "username": "admin@example.org",
                    "password": "demo-admin-2026",
                },
            )
            yield Running(f"{url}/graphql", answer.json()["access_token"])
        finally:
            server.terminate()
            server.wait()


def _run(*command: str | Path, cwd: Path = NODE, last: str = r"^(.+)$") -> Said:
    """The command is content when it ends with 0; its figure is what the pattern finds in its output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "SCHEMATHESIS_HOOKS": "made_up_scalars",
        "PATH": f"{NODE / 'node_modules' / '.bin'}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    whole = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).strip()
    found = re.findall(last, whole, re.M)
    return Said(done.returncode == 0, found[-1] if found else f"exit {done.returncode}", whole)


def audit(server: Running) -> Said:
    """graphql-http: GraphQL over HTTP."""
    return _run("node", "audit.mjs", server.url, server.token)


def sockets(server: Running) -> Said:
    """graphql-ws: its client, on a live feed."""
    said = _run("node", "watch.mjs", server.url, server.token)
    return Said(said.holds, f"{said.whole.count('ok: ')} checks", said.whole)


def schemathesis(server: Running) -> Said:
    """schemathesis: made-up operations of the whole schema; none may end in a server's error."""
    return _run(
        PYTHON / "schemathesis",
        *("run", server.url, "--header", f"Authorization: Bearer {server.token}"),
        *("--checks", "not_a_server_error", "--max-examples", EXAMPLES, "--seed", "1", "--no-color"),
        # It would sign itself out.
        *("--exclude-name", "Mutation.signOutEverywhere"),
        last=r"(\d+ generated.*)",
    )


def hypothesis(server: Running) -> Said:
    """hypothesis-graphql: valid queries, of which none may be answered INTERNAL."""
    return _run(
        PYTHON / "python",
        HERE / "valid_queries.py",
        ROOT / "schema.graphql",
        server.url,
        server.token,
        str(4 * int(EXAMPLES)),
    )


def clairvoyance(server: Running) -> Said:
    """clairvoyance: what an anonymous caller learns of the schema from errors."""
    found = KEPT / "clairvoyance.json"
    found.unlink(missing_ok=True)
    # The hardest for us: it need not guess, it tries the schema's very own names.
    names = KEPT / "names.txt"
    names.write_text("\n".join(sorted(set(re.findall(r"\w+", (ROOT / "schema.graphql").read_text())))))
    said = _run(PYTHON / "clairvoyance", "-w", str(names), "-o", str(found), server.url)
    if not found.exists():
        # It is told by names in messages what there is; where there are none it says so, and ends.
        gave_up = "Field Suggestion is not fully enabled" in said.whole
        return Said(gave_up, "gave up: no names in messages", said.whole)
    types = json.loads(found.read_text())["data"]["__schema"]["types"]
    fields = [f"{item['name']}.{field['name']}" for item in types for field in item.get("fields") or ()]
    return Said(not fields, f"{len(fields)} fields learnt", f"{said.whole} {fields}")


def relay(_: Running) -> Said:
    """relay-compiler: connections, refetching, node and subscriptions as Relay has them."""
    (NODE / "__generated__" / "relay").mkdir(parents=True, exist_ok=True)
    return _run("relay-compiler", "relay.config.json", last=r"(Compiled.*|Done.*|.*documents.*)")


def codegen(_: Running) -> Said:
    """graphql-codegen, and TypeScript's strict compiler over a client that uses what it made."""
    made = _run("graphql-codegen", "--config", "codegen.yml")
    if not made.holds:
        return made
    said = _run("tsc", "--project", "tsconfig.json")
    return Said(said.holds, "tsc --strict has no objection" if said.holds else "tsc objects", said.whole)


def sdl(_: Running) -> Said:
    """graphql-schema-linter and graphql-eslint, on the schema's text."""
    shutil.copy(ROOT / "schema.graphql", NODE)
    linted = _run("graphql-schema-linter", "schema.graphql")
    checked = _run("eslint", "--max-warnings", "0", "schema.graphql")
    errors = len(re.findall(r"^\s*\d+:\d+ ", linted.whole + "\n" + checked.whole, re.M))
    return Said(linted.holds and checked.holds, f"{errors} objections", linted.whole + checked.whole)


def bandit(_: Running) -> Said:
    """bandit: the security linter, over the server."""
    # As the linter's own exceptions in pyproject.toml. What it calls of low severity is the linter's business, too,
    # with a reason beside each exception.
    return _run(
        PYTHON / "bandit",
        "-r",
        "ekoyka",
        "-s",
        "B101,B608",
        "-ll",
        cwd=ROOT,
        last=r"(No issues identified|>> Issue.*)",
    )


TOOLS: dict[str, Callable[[Running], Said]] = {
    "audit": audit,
    "sockets": sockets,
    "schemathesis": schemathesis,
    "hypothesis": hypothesis,
    "clairvoyance": clairvoyance,
    "relay": relay,
    "codegen": codegen,
    "sdl": sdl,
    "bandit": bandit,
}

if __name__ == "__main__":
    sys.exit(main())
