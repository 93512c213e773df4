"""What can be asked: worlds to ask about, and a document with variables for every root field, from the schema."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLUnionType,
    get_named_type,
    is_leaf_type,
)

from ekoyka.certificates.tables import Certificate
from ekoyka.graph.ids import decode_as
from ekoyka.graph.model import TYPES
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import AccessEntry, Account, Session
from ekoyka.inpatient.tables import Reservation
from tests.api.matrix import NODES
from tests.client import gid
from tests.factories import Factory
from tests.outpatient.clinic import notify, one_of_each

_SCALARS: dict[str, Any] = {
    "Int": 1,
    "Float": 1.5,
    "Boolean": True,
    "String": "0123456789",
    "Date": "2026-01-01",
    "Time": "09:00",
    "DateTime": "2026-01-01T00:00:00Z",
    "TimeZone": "Europe/Moscow",
    "Phone": "+74950000000",
}
# Where the first value of an enum is refused whatever the ids are.
_CHOICES = {"Role": "DOCTOR"}
NOBODY = {kind: gid(kind, 10**15) for kind in NODES}
# An argument that is called otherwise than the kind of row it names.
_MEANT = {
    "attendingDoctorId": "Account",
    "doctorId": "Account",
    "entryId": "WaitingEntry",
    "followUpSlotId": "Slot",
}


@dataclass(frozen=True)
class World:
    """A dispensary with one row of every kind; all its texts hold its word."""

    word: str
    rows: dict[str, str]
    person: Account
    dispensary: Any


async def world(make: Factory, word: str) -> World:
    place = await make.dispensary(name=f"Диспансер {word}", neutral_name=f"Больница {word}", address=word)
    person = await make.account(name=f"Житель {word}")
    doctor = await make.account(doctor_of=(place,), name=f"Врач {word}")
    room = await make.room(place, number=f"Палата {word}")
    bed, taken, kept = [await make.bed(place, room, label=f"{word} {n}") for n in range(3)]
    patient = await make.patient(place, family_name=word, given_name=word, account_id=person.id)
    now = datetime.now(UTC)
    past = await make.stay(
        patient, bed, since=now - timedelta(days=9), until=now - timedelta(days=7), board_alias=word
    )
    stay = await make.stay(patient, taken, board_alias=word)
    reservation = await make.keep(
        Reservation(
            bed_id=kept.id,
            dispensary_id=place.id,
            reserved_by_id=doctor.id,
            until=now + timedelta(hours=5),
        )
    )
    certificate = await make.keep(
        Certificate(
            dispensary_id=place.id,
            stay_id=past.id,
            year=2026,
            number=1,
            language="ru",
            issued_on=date(2026, 1, 1),
            issued_by_id=doctor.id,
            verification_code=f"{word}-{place.id}",
            facts={},
        )
    )
    assignment = await make.database.fetch_value("SELECT id FROM bed_assignment WHERE stay_id = $1", stay.id)
    entry = await make.keep(AccessEntry(action=f"read {word}", patient_id=patient.id))
    rows = {
        "AccessEntry": gid("AccessEntry", entry),
        "Account": gid("Account", doctor),
        "Bed": gid("Bed", bed),
        "BedAssignment": gid("BedAssignment", assignment),
        "Certificate": gid("Certificate", certificate),
        "Dispensary": gid("Dispensary", place),
        "Patient": gid("Patient", patient),
        "Reservation": gid("Reservation", reservation),
        "Room": gid("Room", room),
        "Session": await _session(make, person.id),
        "Stay": gid("Stay", stay),
    }
    clinic = await one_of_each(make, place, doctor, patient, word)
    rows |= {kind: gid(kind, number) for kind, number in clinic.items()}
    return World(word, rows, person, place)


async def _session(make: Factory, account_id: int) -> str:
    ends = datetime.now(UTC) + timedelta(days=1)
    return gid("Session", await make.keep(Session(account_id=account_id, expires_at=ends)))


async def as_role(make: Factory, role: str, here: World) -> tuple[Actor | None, World]:
    """The actor, and the world as theirs: everybody's own account is their own, the administrator's any."""
    if role == "ANONYMOUS":
        return None, here
    if role == "USER":
        actor = Actor(account_id=here.person.id, auth_version=here.person.auth_version)
    else:
        place = (here.dispensary,)
        actor = await make.actor(
            superadmin=role == "SUPERADMIN",
            doctor_of=place if role == "DOCTOR" else (),
            dispatcher_of=place if role == "DISPATCHER" else (),
        )
    rows = dict(here.rows)
    if role != "USER":
        appointment = decode_as("Appointment", here.rows["Appointment"])
        notification = await notify(make, appointment, here.dispensary, actor.account_id)
        rows["Notification"] = gid("Notification", notification)
    if role != "SUPERADMIN":
        rows["Account"] = gid("Account", actor.account_id)
        rows["Session"] = await _session(make, actor.account_id)
    return actor, World(here.word, rows, here.person, here.dispensary)


@dataclass(frozen=True)
class Question:
    """A field of a root type: its document for a role, its variables with the kinds of rows its ids name."""

    root: str
    name: str
    document: str
    variables: dict[str, Any]
    # Where the ids are: (path into the variables, kind of row).
    ids: tuple[tuple[tuple[str, ...], str], ...]

    def with_rows(self, rows: dict[str, str], *, but: tuple[tuple[str, ...], str] | None = None) -> Any:
        """The variables with ids of these rows; ``but`` one of them is this."""
        values = copy.deepcopy(self.variables)
        for path, kind in self.ids:
            place = values
            for step in path[:-1]:
                place = place[step]
            row = but[1] if but and but[0] == path else rows[kind]
            place[path[-1]] = [row] if isinstance(place[path[-1]], list) else row
        return values


def _kind(field: str, argument: str) -> str:
    """The kind of row that an id means, by its name or its field's."""
    if argument in _MEANT:
        return _MEANT[argument]
    for kind in NODES:
        if argument == f"{kind[0].lower()}{kind[1:]}Id":
            return kind
    return next(
        kind for kind in sorted(NODES, key=len, reverse=True) if field.lower().startswith(kind.lower())
    )


def _value(type_: Any) -> Any:
    if isinstance(type_, GraphQLNonNull):
        return _value(type_.of_type)
    if isinstance(type_, GraphQLList):
        return [_value(type_.of_type)]
    if isinstance(type_, GraphQLEnumType):
        return _CHOICES.get(type_.name, next(iter(type_.values)))
    assert isinstance(type_, GraphQLScalarType), type_
    return None if type_.name == "ID" else _SCALARS[type_.name]


def _given(
    named: dict[str, Any], field: str, kind: str | None, path: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[tuple[tuple[str, ...], str]]]:
    """Values for all that is needed and for every id that may be given, and where those ids are."""
    values: dict[str, Any] = {}
    ids: list[tuple[tuple[str, ...], str]] = []
    for name, item in named.items():
        inner = get_named_type(item.type)
        here = (*path, name)
        if isinstance(inner, GraphQLInputObjectType):
            if isinstance(item.type, GraphQLNonNull):
                values[name], more = _given(inner.fields, field, kind, here)
                ids += more
        elif getattr(inner, "name", "") == "ID":
            values[name] = _value(item.type)
            ids.append((here, kind or _kind(field, name)))
        elif isinstance(item.type, GraphQLNonNull):
            values[name] = _value(item.type)
    return values, ids


def _hidden(type_name: str, held: frozenset[str]) -> bool:
    """Whether the roles may see no row of the type."""
    declared = TYPES.get(type_name)
    return declared is not None and declared.scope is not None and held.isdisjoint(declared.scope)


def selection(
    schema: GraphQLSchema,
    type_: Any,
    held: frozenset[str],
    depth: int,
    beside: dict[str, str] | None = None,
) -> str:
    """All that the roles may see of the type, so deep; of fields that would clash with those beside, the first."""
    if is_leaf_type(type_):
        return ""
    if isinstance(type_, GraphQLUnionType | GraphQLInterfaceType):
        names: dict[str, str] = {}
        inside = 1 if isinstance(type_, GraphQLUnionType) else depth
        parts = [
            f"... on {item.name} {selection(schema, item, held, inside, names)}"
            for item in schema.get_possible_types(type_)
            if not _hidden(item.name, held)
        ]
        return "{ __typename " + " ".join(parts) + " }"
    assert isinstance(type_, GraphQLObjectType)
    parts = ["__typename"]
    declared = TYPES.get(type_.name)
    for name, field in type_.fields.items():
        target = get_named_type(field.type)
        link = declared.fields.get(name) if declared else None
        if link is not None and link.roles is not None and held.isdisjoint(link.roles):
            continue
        if _hidden(target.name, held):
            continue
        if any(isinstance(item.type, GraphQLNonNull) for item in field.args.values()):
            continue
        if beside is not None and beside.setdefault(name, str(field.type)) != str(field.type):
            continue
        if is_leaf_type(target):
            parts.append(name)
        elif depth > 0:
            page = "(first: 2)" if "first" in field.args else ""
            inner = selection(schema, target, held, depth - (0 if "edges" in type_.fields else 1))
            parts.append(f"{name}{page} {inner}")
    return "{ " + " ".join(parts) + " }"


def questions(schema: GraphQLSchema, held: frozenset[str], kinds: tuple[str, ...]) -> Iterator[Question]:
    """Everything that can be asked at the roots of these kinds."""
    for root_kind in kinds:
        root = schema.type_map[root_kind]
        assert isinstance(root, GraphQLObjectType)
        for name, field in root.fields.items():
            for kind in NODES if name in ("node", "nodes") else (None,):
                values, ids = _given(field.args, name, kind)
                head = ", ".join(f"${arg}: {field.args[arg].type}" for arg in values)
                given = ", ".join(f"{arg}: ${arg}" for arg in values)
                body = selection(schema, get_named_type(field.type), held, 1)
                if kind is not None:
                    body = (
                        f"{{ __typename ... on {kind} {selection(schema, schema.type_map[kind], held, 1)} }}"
                    )
                document = (
                    f"{root_kind.lower()} {f'({head})' if head else ''} "
                    f"{{ {name} {f'({given})' if given else ''} {body} }}"
                )
                yield Question(root_kind, name, document, values, tuple(ids))
