"""Every root field as every role: made from the schema, so that a new field is asked too."""

from typing import Any

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLUnionType,
    get_named_type,
)

from ekoyka.graph import declare as graph
from ekoyka.graph.model import ANONYMOUS
from ekoyka.identity.actors import Actor
from tests.client import Client, gid
from tests.factories import Factory

_SCALARS: dict[str, Any] = {
    "Int": 1,
    "Float": 1.5,
    "Boolean": True,
    "String": "0123456789",
    "Date": "2026-01-01",
    "DateTime": "2026-01-01T00:00:00Z",
    "TimeZone": "Europe/Moscow",
    "Phone": "+74950000000",
}
_TYPES = ("Dispensary", "Room", "Bed", "Patient", "Stay", "Reservation", "Certificate", "Account")


def meant_by(field: str, argument: str) -> str:
    """The type of row that an id argument means, by its name or its field's."""
    for name in _TYPES:
        if argument in (f"{name[0].lower()}{name[1:]}Id", "attendingDoctorId" if name == "Account" else ""):
            return name
    return next((name for name in _TYPES if field.lower().startswith(name.lower())), "Bed")


def value_of(type_: Any, field: str, argument: str, rows: dict[str, str]) -> Any:
    """A plausible value, with ids of these rows."""
    if isinstance(type_, GraphQLNonNull):
        return value_of(type_.of_type, field, argument, rows)
    if isinstance(type_, GraphQLList):
        return [value_of(type_.of_type, field, argument, rows)]
    if isinstance(type_, GraphQLEnumType):
        return next(iter(type_.values))
    if isinstance(type_, GraphQLInputObjectType):
        return {
            name: value_of(item.type, field, name, rows)
            for name, item in type_.fields.items()
            if isinstance(item.type, GraphQLNonNull)
        }
    return rows[meant_by(field, argument)] if type_.name == "ID" else _SCALARS[type_.name]


def documents(
    schema: GraphQLSchema, rows: dict[str, str]
) -> list[tuple[str, frozenset[str], str, dict[str, Any]]]:
    """For each query field and mutation: its name, its roles, a document, and variables."""
    found = []
    assert schema.query_type is not None
    assert schema.mutation_type is not None
    for kind, root in (("query", schema.query_type), ("mutation", schema.mutation_type)):
        for name, field in root.fields.items():
            needed = {key: arg for key, arg in field.args.items() if isinstance(arg.type, GraphQLNonNull)}
            head = ", ".join(f"${key}: {arg.type}" for key, arg in needed.items())
            given = ", ".join(f"{key}: ${key}" for key in needed)
            named = get_named_type(field.type)
            isolated = isinstance(named, GraphQLObjectType | GraphQLUnionType | GraphQLInterfaceType)
            document = (
                f"{kind} {f'({head})' if head else ''} {{ {name} {f'({given})' if given else ''} "
                f"{'{ __typename }' if isolated else ''} }}"
            )
            roles = (
                graph.TYPES["Query"].fields[name].roles
                if kind == "query"
                else graph.ROOT_ROLES[f"Mutation.{name}"]
            )
            assert roles is not None
            variables = {key: value_of(arg.type, name, key, rows) for key, arg in needed.items()}
            found.append((name, roles, document, variables))
    return found


@pytest.mark.parametrize("role", [ANONYMOUS, "USER", "DISPATCHER", "DOCTOR", "SUPERADMIN"])
async def test_each_root_field_is_open_to_its_roles_and_closed_to_the_others(
    client: Client, make: Factory, role: str
) -> None:
    """Closed is a request error before any SQL; open is data, be it a refusal.

    Every row is in another dispensary than the doctor's and dispatcher's, for whom it does not exist.
    """
    here, there = await make.dispensary(), await make.dispensary()
    bed = await make.bed(there)
    patient = await make.patient(there)
    stay = await make.stay(patient, bed)
    rows = {name: gid(name, 10**6) for name in _TYPES} | {
        "Dispensary": gid("Dispensary", there),
        "Room": gid("Room", bed.room_id),
        "Bed": gid("Bed", bed),
        "Patient": gid("Patient", patient),
        "Stay": gid("Stay", stay),
    }
    actor: Actor | None = {
        ANONYMOUS: None,
        "USER": await make.actor(),
        "DISPATCHER": await make.actor(dispatcher_of=(here,)),
        "DOCTOR": await make.actor(doctor_of=(here,)),
        "SUPERADMIN": await make.actor(superadmin=True),
    }[role]
    held = {ANONYMOUS} if actor is None else {item.value for item in actor.roles}
    database = client.services.database
    asked = 0

    for name, roles, document, variables in documents(client.app.state.schema._schema, rows):
        before = database.statements
        answer = await client.post(document, actor, **variables)
        if held & roles:
            assert "errors" not in answer, (name, answer)
            if role in ("DOCTOR", "DISPATCHER") and document.startswith("mutation") and "USER" not in roles:
                assert answer["data"][name]["__typename"] in ("NotFound", "Invalid"), (name, answer)
        else:
            code = "UNAUTHENTICATED" if actor is None else "FORBIDDEN"
            assert [error["extensions"]["code"] for error in answer["errors"]] == [code], (name, answer)
            assert answer["errors"][0]["path"] == [name]
            assert database.statements == before, name
        asked += 1

    assert asked > 50
    if role in ("DOCTOR", "DISPATCHER"):
        row = (
            await database.fetch("SELECT service_state, archived_at, version FROM bed WHERE id = $1", bed.id)
        )[0]
        assert tuple(row) == ("IN_SERVICE", None, 1)
        assert await database.fetch_value("SELECT version FROM stay WHERE id = $1", stay.id) == 1
