"""The benchmark's queries on data of the benchmark's size: by indexes, and the same at any page."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from benchmarks import dataset
from benchmarks.operations import READS, TEXTS, variables
from ekoyka.api.context import Run
from ekoyka.database import Database
from ekoyka.graph.text import unmarked
from ekoyka.identity.actors import Actor
from ekoyka.settings import Settings
from tests.client import Client, context, serving
from tests.conftest import address_of, administer, dropped

LARGE = ("stay", "bed_assignment", "patient")
ACTORS = {
    "superadmin": Actor(account_id=dataset.ADMIN, auth_version=1, superadmin=True),
    "doctor": Actor(account_id=dataset.ADMIN, auth_version=1, doctor_of=frozenset({1, 2, 3, 4, 5})),
}


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    """The address of a database of the benchmark's size."""
    name = f"large_{uuid.uuid4().hex[:12]}"

    async def build() -> None:
        await administer(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' "
            "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
        )
        await dataset.build(address_of(name))

    asyncio.run(build())
    yield address_of(name)
    asyncio.run(dropped(name))


@pytest.fixture
async def large(network: str, settings: Settings) -> AsyncIterator[Client]:
    async with serving(settings.model_copy(update={"database_url": SecretStr(network)})) as client:
        yield client


def _statement(run: Run, text: str, given: dict[str, object]) -> tuple[str, list[Any]]:
    plan = run.planner.plan(run.planner.document(text), None, given, run.actor_shape())
    run.bind(plan)
    (key,) = plan.roots
    read = plan.roots[key].read
    assert read is not None
    return read.sql, plan.parameters[key]


_GENERIC = """DO $do$ DECLARE found json; BEGIN
    EXECUTE $q$EXPLAIN (GENERIC_PLAN, FORMAT JSON) {sql}$q$ INTO found;
    PERFORM set_config('bench.plan', found::text, false); END $do$"""


async def _explain(
    database: Database, sql: str, parameters: list[Any], *, generic: bool = False
) -> dict[str, Any]:
    """The plan for these values, run, with what it read; or the one that is made for all values."""
    async with database.transaction() as session:
        raw = await (await session.connection()).get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None
        if generic:
            # EXPLAIN of a generic plan takes no values, which only a text without a protocol's parameters lets it.
            await driver.execute(_GENERIC.format(sql=sql))
            found = orjson.loads(await driver.fetchval("SELECT current_setting('bench.plan')"))
        else:
            found = await driver.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *parameters)
    plan: dict[str, Any] = found[0]["Plan"]
    return plan


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for inner in plan.get("Plans", []) for node in _nodes(inner))]


@pytest.mark.parametrize("generic", [True, False])
@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("read", READS)
async def test_no_read_scans_a_large_table(large: Client, read: str, actor: str, generic: bool) -> None:
    run = context(large, ACTORS[actor], compiled=True)
    for turn in range(5):
        sql, parameters = _statement(run, TEXTS[read], variables(read, turn))

        nodes = _nodes(await _explain(large.services.database, sql, parameters, generic=generic))

        scanned = [
            node["Relation Name"]
            for node in nodes
            if node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE
        ]
        assert not scanned


PAGE = """query ($after: String, $where: StayWhere, $order: [StayOrder!]) {
    stays(first: 50, after: $after, where: $where, orderBy: $order) { edges { node { id } }
        pageInfo { endCursor } } }"""


@pytest.mark.parametrize(
    ("where", "order"),
    [
        ({}, None),
        ({"dispensaryId": "RGlzcGVuc2FyeTox"}, None),
        ({"dispensaryId": "RGlzcGVuc2FyeTox"}, [{"field": "CHECKED_OUT_AT", "direction": "DESC"}]),
        (
            {"dispensaryId": "RGlzcGVuc2FyeTox", "open": False},
            [{"field": "CHECKED_OUT_AT", "direction": "ASC"}],
        ),
    ],
)
async def test_a_page_deep_in_the_list_reads_no_more_than_the_first(
    large: Client, where: dict[str, Any], order: Any
) -> None:
    run = context(large, ACTORS["superadmin"], compiled=True)
    database = large.services.database

    async def read(after: str | None) -> tuple[float, str | None]:
        given = {"where": where, "order": order, "after": after}
        sql, parameters = _statement(run, PAGE, given)
        for _ in range(2):  # the second time nothing is new to the session
            plan = await _explain(database, sql, parameters)
        answer = orjson.loads(unmarked(await database.fetch_value(sql, *parameters))[0])
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], answer["pageInfo"]["endCursor"]

    first, cursor = await read(None)
    for _ in range(70):
        sql, parameters = _statement(run, PAGE, {"where": where, "order": order, "after": cursor})
        answer = orjson.loads(unmarked(await database.fetch_value(sql, *parameters))[0])
        assert len(answer["edges"]) == 50
        cursor = answer["pageInfo"]["endCursor"]

    deep, _ = await read(cursor)

    assert deep <= first * 1.5 + 20, f"{first} blocks for the first page, {deep} for the 72nd"


async def test_a_total_is_counted_only_when_it_is_asked_for(large: Client) -> None:
    run = context(large, ACTORS["superadmin"], compiled=True)
    blocks = {}
    for asked in ("pageInfo { hasNextPage }", "totalCount"):
        sql, parameters = _statement(
            run, f"{{ stays(first: 1) {{ {asked} edges {{ node {{ id }} }} }} }}", {}
        )
        plan = await _explain(large.services.database, sql, parameters)
        blocks[asked] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    assert blocks["pageInfo { hasNextPage }"] < 20
    assert blocks["totalCount"] > 100
