"""What a measurement of check-ins stands on: free beds and patients, and the bare transaction for pgbench.

A round is: `prepare` once, then rounds of checking patient ``number`` into bed ``number`` (see `Ground`), each
number once, and `reset` after each round; `remove` at the end. `pgbench_script` is the transaction that the
server sends for a check-in, recorded from the server's own code, so that the two cannot drift apart. Run it with

    pgbench -n -M prepared -c CLIENTS -j 1 -t CHECK_INS_OF_EACH -D each=CHECK_INS_OF_EACH -D n=-1 -f SCRIPT DATABASE

All of it works on a copy of a database.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
from asgi_lifespan import LifespanManager
from sqlalchemy import event

from ekoyka.api.context import Services
from ekoyka.app import create_app
from ekoyka.graph.ids import decode_as, encode
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.facts import LOCK, LOOK
from ekoyka.inpatient.stays import CHECK_IN
from ekoyka.settings import Settings

# Far above what the database gives out by itself.
FIRST = 10**12
BEDS_IN_A_ROOM = 4
MUTATION = """mutation ($input: StayCheckInInput!) { stayCheckIn(input: $input) {
  __typename
  ... on Stay { id version checkedInAt currentBed { id label status } patient { id } }
  ... on Refusal { code message }
} }"""


@dataclass(frozen=True, slots=True)
class Ground:
    """The free beds and patients of the rounds, and who checks in."""

    count: int
    actor: Actor

    def bed(self, number: int) -> int:
        """The key of the bed with this number, from 0."""
        return FIRST + number

    def patient(self, number: int) -> int:
        """The key of the patient with this number, from 0."""
        return FIRST + self.count + number

    def request(self, number: int) -> dict[str, Any]:
        """The body of the GraphQL request that checks the patient into the bed."""
        order = {
            "patientId": encode("Patient", self.patient(number)),
            "bedId": encode("Bed", self.bed(number)),
        }
        return {"query": MUTATION, "variables": {"input": order}}


async def prepare(url: str, count: int) -> Ground:
    """So many free beds and patients are there, spread over the database's dispensaries."""
    await remove(url)
    connection = await asyncpg.connect(url)
    try:
        account = await connection.fetchval(
            "INSERT INTO account (id, email, password_hash, name, language, auth_version, version) "
            "VALUES ($1, 'benchmark@example.org', '-', 'Измерение', 'ru', 1, 1) RETURNING id",
            FIRST,
        )
        await connection.execute(
            "INSERT INTO role_grant (account_id, role) VALUES ($1, 'SUPERADMIN')", account
        )
        places = await connection.fetchval(
            "SELECT array_agg(id ORDER BY id) FROM dispensary WHERE archived_at IS NULL"
        )
        # Room n is of dispensary n, round and round; a bed's dispensary is its room's.
        values = (FIRST, count, BEDS_IN_A_ROOM, places)
        place = "($4::bigint[])[1 + n / $3 % cardinality($4::bigint[])]"
        await connection.execute(
            "INSERT INTO room (id, dispensary_id, number, sex, isolation, version) "
            f"SELECT $1 + n / $3, {place}, 'Изм-' || n, 'ANY', false, 1 "
            "FROM generate_series(0, $2::bigint - 1, $3::bigint) n",
            *values,
        )
        await connection.execute(
            "INSERT INTO bed (id, dispensary_id, room_id, label, profile, service_state, version) "
            f"SELECT $1 + n, {place}, $1 + n / $3, n::text, 'наркологическая', 'IN_SERVICE', 1 "
            "FROM generate_series(0, $2::bigint - 1) n CROSS JOIN (SELECT $3::bigint) room",
            *values,
        )
        await connection.execute(
            "INSERT INTO patient (id, dispensary_id, record_number, code_name, sex, needs_isolation, version) "
            f"SELECT $1 + $2 + n, {place}, 'Изм-' || n, 'Измерение ' || n, 'MALE', false, 1 "
            "FROM generate_series(0, $2::bigint - 1) n CROSS JOIN (SELECT $3::bigint) room",
            *values,
        )
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
    return Ground(count, Actor(account_id=account, auth_version=1, superadmin=True))


# At once, in one transaction: a stay is never without its assignment.
_MADE = (
    f"DELETE FROM bed_assignment WHERE bed_id >= {FIRST}",
    f"DELETE FROM stay WHERE patient_id >= {FIRST}",
    f"DELETE FROM access_entry WHERE patient_id >= {FIRST}",
    f"DELETE FROM feed_event WHERE (payload->>'bed')::bigint >= {FIRST}",
)
_GROUND = (
    f"DELETE FROM bed WHERE id >= {FIRST}",
    f"DELETE FROM room WHERE id >= {FIRST}",
    f"DELETE FROM patient WHERE id >= {FIRST}",
    f"DELETE FROM role_grant WHERE account_id >= {FIRST}",
    f"DELETE FROM account WHERE id >= {FIRST}",
)


async def reset(url: str) -> None:
    """Nobody was ever checked into the beds; the tables are as before the round."""
    await _execute(url, "; ".join(_MADE), "VACUUM ANALYZE")


async def remove(url: str) -> None:
    """The beds, rooms, patients and the account are gone, too."""
    await _execute(url, "; ".join((*_MADE, *_GROUND)))


async def check_ins(url: str) -> int:
    """How many of the patients lie in a bed now."""
    connection = await asyncpg.connect(url)
    try:
        found: int = await connection.fetchval("SELECT count(*) FROM stay WHERE patient_id >= $1", FIRST)
        return found
    finally:
        await connection.close()


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for sql in statements:
            await connection.execute(sql)
    finally:
        await connection.close()


# Which of the parameters of the server's statements pgbench fills in, and from where: its own bed and patient,
# or a column that a statement before has returned. The others are as they were recorded.
_VARIABLES = {
    LOCK: {"bed": "bed", "patient": "patient"},
    LOOK: {"bed": "bed", "patient": "patient"},
    CHECK_IN: {
        "bed": "bed",
        "patient": "patient",
        "dispensary": "dispensary_id",
        "at": "since",
        "now": "now",
    },
}


async def pgbench_script(settings: Settings, ground: Ground) -> str:
    """The bare transaction of a check-in: the statements that the server sends, in its round trips.

    The server's code makes two check-ins, on the database of the settings, to record them; `reset` them.
    """
    lines = [
        "\\set n :n + 1",
        f"\\set bed {ground.bed(0)} + :client_id * :each + :n",
        f"\\set patient {ground.patient(0)} + :client_id * :each + :n",
    ]
    statements = {statement.sql: statement for statement in _VARIABLES}
    recorded, stay = await _recorded(settings, ground)
    for sql, values in recorded:
        statement = statements.get(sql)
        if statement is not None:
            columns = {statement.names.index(name): column for name, column in _VARIABLES[statement].items()}
            lines.append(_filled(sql, values, columns) + " \\gset")
        elif values:  # the payload, read by the stay's key
            columns = {place: "id" for place, value in enumerate(values) if value == stay}
            lines.append(_filled(sql, values, columns) + ";")
        else:
            parts = [f"{part.strip()};" for part in sql.split(";") if part.strip()]
            lines += parts if len(parts) == 1 else ["\\startpipeline", *parts, "\\endpipeline"]
    return "\n".join(lines) + "\n"


def _filled(sql: str, values: tuple[Any, ...], columns: dict[int, str]) -> str:
    """The statement on one line, with variables of pgbench and values in place of its parameters."""

    def parameter(found: re.Match[str]) -> str:
        place = int(found[1]) - 1
        return f":{columns[place]}" if place in columns else _literal(values[place])

    # A colon within a text would be taken for a variable.
    plain = re.sub(r"(?<!:):(?=\w)", "'||':'||'", " ".join(sql.split()))
    return re.sub(r"\$(\d+)", parameter, plain)


def _literal(value: Any) -> str:
    match value:
        case None:
            return "NULL"
        case bool() | int():
            return str(value)
        case bytes():
            return f"'\\x{value.hex()}'"
        case list():
            return "'{" + ",".join(map(str, value)) + "}'"
        case _:
            return "'" + str(value).replace("'", "''").replace(":", "'||':'||'") + "'"


async def _recorded(settings: Settings, ground: Ground) -> tuple[list[tuple[str, tuple[Any, ...]]], int]:
    """What the server sends to PostgreSQL for a check-in, with the parameters; and the stay's key."""
    sent: list[tuple[str, tuple[Any, ...]]] = []

    def tell(query: Any) -> None:
        sent.append((query.query, query.args))

    def listen(connection: Any, *_: object) -> None:
        connection.driver_connection.add_query_logger(tell)

    app = create_app(settings)
    async with LifespanManager(app) as manager:
        await app.state.prepared.wait()
        services: Services = app.state.services
        event.listen(services.database.engine.sync_engine, "checkout", listen)
        transport = httpx.ASGITransport(app=manager.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://benchmark") as http:
            # The first one on a connection also learns the types of its statements.
            for number in range(2):
                sent.clear()
                answer = await http.post(
                    "/graphql",
                    json=ground.request(number),
                    headers={"authorization": f"Bearer {services.tokens.issue(ground.actor).text}"},
                )
                await asyncio.sleep(0)  # what was sent is told in the loop's next turn
    made = answer.json()["data"]["stayCheckIn"]
    if made["__typename"] != "Stay":
        raise RuntimeError(f"the check-in to record was refused: {made}")
    return sent, decode_as("Stay", made["id"])
