"""Statements, pages, permissions and scopes of the read path."""

from typing import Any

import orjson
import pytest
from graphql import GraphQLInterfaceType, GraphQLNonNull, GraphQLObjectType, GraphQLUnionType, get_named_type
from graphql.execution.values import VariableValues

from ekoyka.database import Database
from ekoyka.graph import declare as graph
from ekoyka.graph.compile import Compiler, _Names
from ekoyka.graph.model import LinkDecl
from ekoyka.graph.plan import shape
from tests.client import gid
from tests.factories import Factory
from tests.graph.conftest import World


def _selection(type_: Any, depth: int) -> str:
    """A selection of everything on a type, so deep."""
    named = get_named_type(type_)
    if isinstance(named, GraphQLInterfaceType | GraphQLUnionType):
        return "{ __typename id }"
    if depth == 0:
        return "{ __typename }"
    if not isinstance(named, GraphQLObjectType):
        return ""
    parts = ["__typename"]
    for name, field in named.fields.items():
        if any(isinstance(argument.type, GraphQLNonNull) for argument in field.args.values()):
            continue
        inner = (
            _selection(field.type, depth - 1)
            if isinstance(get_named_type(field.type), GraphQLObjectType)
            else ""
        )
        if inner or (not isinstance(get_named_type(field.type), GraphQLObjectType)):
            parts.append(f"{name} {inner}")
    return "{ " + " ".join(parts) + " }"


@pytest.mark.usefixtures("unlimited")
async def test_every_root_field_is_one_statement_whatever_the_depth(world: World) -> None:
    """And one more where it is counted how often somebody asks."""
    database, schema = world.client.services.database, world.client.app.state.schema
    arguments = {
        "id": world.ids["Dispensary"][0],
        "ids": [keys[0] for keys in world.ids.values()],
        "code": "0123456789ABCDEFGHJK",
        "patientId": world.ids["Patient"][0],
        "dispensaryId": world.ids["Dispensary"][0],
        "from": "2026-01-01",
        "until": "2026-12-31",
        "scheduleId": world.ids["Schedule"][0],
        "day": "2026-01-01",
    }
    counted = {}
    for name, field in schema._schema.query_type.fields.items():
        needed = {
            key: str(arg.type) for key, arg in field.args.items() if isinstance(arg.type, GraphQLNonNull)
        }
        variables = {key: arguments[key] for key in needed}
        if "id" in needed and name != "node":
            variables["id"] = world.ids[name[0].upper() + name[1:]][0]
        head = ", ".join(f"${key}: {type_}" for key, type_ in needed.items())
        given = ", ".join(f"{key}: ${key}" for key in needed)
        head, given = (f"({head})", f"({given})") if needed else ("", "")
        document = f"query {head} {{ {name} {given} {_selection(field.type, 4)} }}"
        for compiled in (True, False):
            before = database.statements
            result = await schema.execute(
                document, variable_values=variables, context_value=world.run("superadmin", compiled=compiled)
            )
            assert result.errors is None, (name, result.errors)
            counted[name, compiled] = database.statements - before

    assert len(counted) == 2 * len(schema._schema.query_type.fields)
    assert {name for (name, _), count in counted.items() if count == 2} == {"certificateVerification"}
    assert set(counted.values()) == {1, 2}


async def test_no_query_field_mutation_or_subscription_is_without_declared_roles(world: World) -> None:
    schema = world.client.app.state.schema._schema

    open_fields = [
        f"{root.name}.{name}"
        for root in (schema.mutation_type, schema.subscription_type)
        for name in root.fields
        if not graph.ROOT_ROLES.get(f"{root.name}.{name}")
    ]
    open_queries = [name for name, field in graph.TYPES["Query"].fields.items() if not field.roles]
    unscoped = [decl.name for decl in graph.TYPES.values() if decl.node and not decl.scope]
    undeclared = [
        name
        for name, type_ in schema.type_map.items()
        if isinstance(type_, GraphQLObjectType)
        and not name.startswith("__")
        and not name.endswith(("Connection", "Edge"))
        and name not in graph.TYPES
        and name not in ("Mutation", "Subscription", "PageInfo")
    ]

    assert open_fields == open_queries == unscoped == undeclared == []


async def test_everything_in_the_schema_is_described(world: World) -> None:
    schema = world.client.app.state.schema._schema
    bare = []
    for name, type_ in schema.type_map.items():
        if name.startswith("__"):
            continue
        if not type_.description:
            bare.append(name)
        for field_name, field in getattr(type_, "fields", {}).items():
            if not field.description:
                bare.append(f"{name}.{field_name}")
            bare += [
                f"{name}.{field_name}({argument})"
                for argument, value in getattr(field, "args", {}).items()
                if not value.description
            ]
        bare += [
            f"{name}.{value}" for value, item in getattr(type_, "values", {}).items() if not item.description
        ]

    assert bare == []


async def test_pages_lead_through_all_rows_in_both_directions(world: World) -> None:
    client, admin = world.client, world.actors["superadmin"]
    for order in ("[]", "[{field: ROOM, direction: DESC}, {field: LABEL, direction: ASC}]"):
        whole = await client.data(
            f"{{ beds(first: 100, orderBy: {order}) {{ edges {{ node {{ id }} }} }} }}", admin
        )
        expected = [edge["node"]["id"] for edge in whole["beds"]["edges"]]
        for size, place, ahead, end in (
            ("first", "after", "hasNextPage", "endCursor"),
            ("last", "before", "hasPreviousPage", "startCursor"),
        ):
            query = (
                f"query ($at: String) {{ beds({size}: 3, {place}: $at, orderBy: {order}) "
                f"{{ edges {{ node {{ id }} }} pageInfo {{ {ahead} {end} }} }} }}"
            )
            found: list[str] = []
            cursor = None
            while True:
                page = (await client.data(query, admin, at=cursor))["beds"]
                keys = [edge["node"]["id"] for edge in page["edges"]]
                found = found + keys if size == "first" else keys + found
                cursor = page["pageInfo"][end]
                if not page["pageInfo"][ahead]:
                    break
            assert found == expected
    assert len(expected) == 8


@pytest.mark.parametrize("field", ["CHECKED_IN_AT", "CHECKED_OUT_AT", "PATIENT_NAME"])
@pytest.mark.parametrize("direction", ["ASC", "DESC"])
async def test_open_and_ended_stays_page_alike_in_every_order(
    world: World, field: str, direction: str
) -> None:
    query = (
        f"query ($at: String) {{ stays(first: 1, after: $at, orderBy: [{{field: {field}, direction: {direction}}}]) "
        "{ totalCount edges { node { id } } pageInfo { endCursor hasNextPage } } }"
    )
    found, cursor, more = [], None, True
    while more:
        page = (await world.client.data(query, world.actors["superadmin"], at=cursor))["stays"]
        found.append(page["edges"][0]["node"]["id"])
        cursor, more = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]

    assert len(set(found)) == len(found) == page["totalCount"] == 4


async def test_a_cursor_of_another_order_and_a_made_up_one_are_refused(world: World) -> None:
    client, admin = world.client, world.actors["superadmin"]
    query = (
        "query ($at: String) "
        "{ stays(after: $at, orderBy: [{field: CHECKED_OUT_AT, direction: ASC}]) { totalCount } }"
    )
    other = await client.data("{ stays { pageInfo { endCursor } } }", admin)

    for cursor in (other["stays"]["pageInfo"]["endCursor"], "zzz", "", "W10=", "bnVsbA==", "é"):
        answer = await client.post(query, admin, at=cursor)
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["BAD_USER_INPUT"], cursor


async def test_page_sizes_outside_1_to_100_are_refused_by_name(world: World) -> None:
    client, admin = world.client, world.actors["superadmin"]

    for arguments in (
        "first: 0",
        "first: -1",
        "first: 101",
        "last: 0",
        "first: 1, last: 1",
        'first: 1, before: "x"',
    ):
        assert await client.codes(f"{{ beds({arguments}) {{ totalCount }} }}", admin) == ["BAD_USER_INPUT"]
        assert await client.codes(
            f"{{ dispensaries {{ edges {{ node {{ beds({arguments}) {{ totalCount }} }} }} }} }}", admin
        ) == ["BAD_USER_INPUT"]


async def test_where_a_role_sees_the_row_but_not_the_field_it_is_null(world: World) -> None:
    query = (
        "{ beds(where: {status: [OCCUPIED]}) "
        "{ edges { node { dispensary { name } currentAssignment { stay { diagnosisCode } } } } } }"
    )

    data = await world.client.data(query, world.actors["both"])

    seen = {
        edge["node"]["dispensary"]["name"]: edge["node"]["currentAssignment"]
        for edge in data["beds"]["edges"]
    }
    assert seen == {"Ёлочка": {"stay": {"diagnosisCode": "F10.2"}}, "Енисей": None}


async def test_forbidden_fields_are_named_with_their_path_before_any_sql(world: World) -> None:
    database = world.client.services.database
    before = database.statements

    answer = await world.client.post(
        "{ beds { edges { node { mine: currentAssignment { id } } } } }", world.actors["dispatcher"]
    )

    assert answer["errors"][0]["path"] == ["beds", "edges", "node", "mine"]
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert "data" not in answer
    assert database.statements == before


async def test_plans_are_kept_by_document_role_and_shape_and_never_mix_actors(world: World) -> None:
    planner = world.client.services.planner
    query = "query ($where: BedWhere) { beds(where: $where) { totalCount } }"

    before = planner.plans.misses
    totals = [
        (await world.client.data(query, world.actors[actor], where=where))["beds"]["totalCount"]
        for actor, where in (
            ("doctor", {"status": ["FREE"]}),
            ("doctor", {"status": ["CLEANING", "FREE"]}),
            ("superadmin", {"status": ["FREE"]}),
            ("superadmin", {"archived": True}),
            ("doctor", {"archived": None}),
        )
    ]

    assert totals == [1, 2, 3, 2, 4]
    assert planner.plans.misses - before == 4


async def test_a_new_row_of_another_dispensary_is_not_reachable_over_any_edge(
    world: World, make: Factory
) -> None:
    """A patient known here who also stays elsewhere: their stays here are seen, the others are not there."""
    database = make.database
    patient = int(await database.fetch_value("SELECT min(id) FROM patient WHERE code_name IS NOT NULL"))
    strange = await make.dispensary()
    row = (await database.fetch("SELECT * FROM patient WHERE id = $1", patient))[0]
    await make.stay(type("Row", (), {"id": row["id"]})(), await make.bed(strange))

    data = await world.client.data(
        "query ($id: ID!) { patient(id: $id) { codeName currentStay { id } stays { totalCount } } }",
        world.actors["doctor"],
        id=gid("Patient", patient),
    )

    assert data["patient"] == {"codeName": "Берёза", "currentStay": None, "stays": {"totalCount": 0}}


@pytest.mark.parametrize("actor", ["superadmin", "doctor", "dispatcher", "both", "user"])
async def test_links_that_ask_no_scope_lead_to_nothing_outside_it(
    world: World, database: Database, actor: str
) -> None:
    """`same_scope` links, each over all rows: whoever sees the one row sees the others."""
    run = world.run(actor, compiled=True)
    shape_, schema = run.actor_shape(), run.planner.schema
    links = [
        (decl, item)
        for decl in graph.TYPES.values()
        for item in decl.fields.values()
        if isinstance(item, LinkDecl) and item.same_scope
    ]
    handed_over = {
        "BedEvent": "(SELECT id AS dispensary_id FROM dispensary)",
    }
    followed = 0
    for decl, link in links:
        compiler = Compiler(schema, {}, VariableValues({}, {}), shape_)
        source, target = decl.source or handed_over[decl.name], graph.TYPES[link.target]
        joined = (
            f"{source} p JOIN {target.source} c ON {link.on('p', 'c', _Names(compiler))} "
            f"WHERE {compiler.scope(decl, 'p', link.roles)}"
        )
        statement = compiler.statement(
            f"(SELECT count(*) || ' ' || count(*) FILTER (WHERE NOT {compiler.scope(target, 'c')}) FROM {joined})",
            guarded=False,
        )
        # As who sees all rows: behind row-level security there would be none outside.
        found = await database.fetch_value(
            statement.sql, *statement.bind(run.actor_values(), VariableValues({}, {}))
        )
        assert found is not None
        reached, outside = map(int, found.split())
        assert outside == 0, f"{decl.name}.{link.graphql_name} leads {actor} outside their scope"
        followed += reached
    assert len(links) >= 10
    assert followed or actor == "dispatcher"


async def test_text_that_json_would_break_comes_through_as_it_is(world: World, make: Factory) -> None:
    hostile = "кавычка \" черта \\ косая / \u0001 \u001e таб\t «ёлка» \u2028 🚑 ' || ' $1 {\""
    place = await make.dispensary()
    room = await make.room(place, number="1")
    database = world.client.services.database
    bed = await make.bed(place, room)
    await database.fetch("UPDATE bed SET profile = $2 WHERE id = $1 RETURNING id", bed.id, hostile)
    for compiled in (True, False):
        result = await world.client.app.state.schema.execute(
            "query ($id: ID!) { bed(id: $id) { profile room { beds { edges { node { profile } } } } } }",
            variable_values={"id": gid("Bed", bed)},
            context_value=world.run("superadmin", compiled=compiled),
        )
        data = orjson.loads(orjson.dumps(result.data))
        assert data["bed"]["profile"] == hostile
        assert data["bed"]["room"]["beds"]["edges"][0]["node"]["profile"] == hostile


def test_lists_in_inputs_have_one_shape_whatever_their_length() -> None:
    assert shape({"a": ["x"]}) == shape({"a": ["y", "z"]})
    assert shape({"a": None}) != shape({"a": "x"}) != shape({})
