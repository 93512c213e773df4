"""What a declaration says, as data: types, their fields, arguments, orders, and who may see them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


class Names(Protocol):
    """What SQL of a declaration may refer to; each call gives a placeholder with its type."""

    def actor(self, name: str) -> str:
        """A value of the actor, such as the ids of the places they work in."""

    def arg(self, name: str) -> str:
        """An argument of the field."""

    def scope(self, type_name: str, row: str) -> str:
        """The condition that the actor may see a row of another type."""

    def joined(self, row: str, link: str) -> str:
        """The alias of the row that a ``joined`` link of this type leads to; its columns are null where none is."""

    def value(self, name: str, pg: str) -> str:
        """A value handed over when the statement runs: the key of a payload's row, a refusal's fields."""


# A list that has no pages is short by its nature: rows of a room, changes of an event.
USUAL_LIST = 10
# What looking through a table for some text costs, in objects.
SEARCH_COST = 500

RowSql = Callable[[str, Names], str]
"""(alias, names) -> SQL."""
LinkSql = Callable[[str, str, Names], str]
"""(parent's alias, child's alias, names) -> a condition."""


def camel(name: str) -> str:
    """The GraphQL form of a Python name."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


class Shape(Enum):
    """How many rows a link leads to, and how they are shown."""

    ONE = "one"
    LIST = "list"
    CONNECTION = "connection"


@dataclass(frozen=True, kw_only=True)
class Arg:
    """An argument or filter: its GraphQL type as text, its PostgreSQL type, how its value is made ready.

    One with ``part_of`` is no argument of its own but another value made from that one.
    """

    type: str
    pg: str
    description: str
    key_of: str | None = None
    decode: Callable[[Any], Any] | None = None
    part_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Filter(Arg):
    """A field of a ``where`` input; ``sql(alias, placeholder)`` is its condition.

    ``absent(alias)`` is the condition that holds where the client says nothing. ``first``: the rows are found by
    it before they are ordered. Where a plan cannot know how few rows meet it, it would walk through all rows in
    the order that is asked for until the page is full. ``cost``: of what it looks through, in objects.
    """

    sql: Callable[[str, str], str]
    absent: Callable[[str], str] | None = None
    first: bool = False
    cost: int = 0


@dataclass(frozen=True, kw_only=True)
class Order:
    """An orderable value; never null, and of a PostgreSQL type that a cursor can carry.

    ``cost``: of ordering by it, in objects, where no index does it.
    """

    sql: Callable[[str], str]
    pg: str
    description: str
    cost: int = 0


@dataclass(kw_only=True)
class FieldDecl:
    """What all fields have; ``roles`` None means: whoever may see the type."""

    description: str
    roles: frozenset[str] | None = None
    name: str = ""
    annotation: str = ""

    @property
    def graphql_name(self) -> str:
        """The name in the schema."""
        return camel(self.name)


@dataclass(kw_only=True)
class ValueDecl(FieldDecl):
    """A scalar, enum or list of them, from an SQL expression."""

    sql: RowSql


@dataclass(kw_only=True)
class LinkDecl(FieldDecl):
    """A way to rows of another type.

    ``same_scope``: whoever may see the one row, by the field's roles, may see the others. A foreign key sees
    to it, so the scope is not asked again; a test asks it. ``joined``: the one row is joined to this one
    rather than looked up by it, so that other fields can refer to it too. ``usual``: how many rows a list has.
    """

    target: str
    shape: Shape
    on: LinkSql
    source: RowSql | None = None
    order: Callable[[str, str], str] | None = None
    default_order: tuple[tuple[str, str], ...] = ()
    same_scope: bool = False
    joined: bool = False
    usual: int = USUAL_LIST
    args: Mapping[str, Arg] = field(default_factory=dict)


@dataclass(kw_only=True)
class AbstractDecl(FieldDecl):
    """A way to a row of any node type: ``sql(alias, names)`` is (type's name, key), or a list of them."""

    refs: Callable[[str, Names], tuple[str, str]]
    many: bool = False
    args: Mapping[str, Arg] = field(default_factory=dict)


@dataclass(kw_only=True)
class TypeDecl:
    """A declared type. ``scope`` maps each role that may see the type to the condition on its rows;
    None: a value type, there wherever its parent is. ``person`` is the key of the person whose record a row
    belongs to; where the field ``person_by`` is selected, that one's row tells it."""

    name: str
    source: str | None
    fields: dict[str, FieldDecl]
    scope: Mapping[str, RowSql] | None
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, Filter] = field(default_factory=dict)
    orders: Mapping[str, Order] = field(default_factory=dict)
    default_order: tuple[tuple[str, str], ...] = ()
    node: bool = False
    marker: RowSql | None = None
    person: RowSql | None = None
    person_by: str | None = None


TYPES: dict[str, TypeDecl] = {}
# "Mutation.stayCheckIn" and the like -> the roles that may; query fields carry theirs themselves.
ROOT_ROLES: dict[str, frozenset[str]] = {}
# The same -> what it costs beside its payload, in objects.
ROOT_COSTS: dict[str, int] = {}
ANONYMOUS = "ANONYMOUS"
