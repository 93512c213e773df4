"""Declarations: what a GraphQL type is over its table, who may see which field, and which rows are there.

A declared class becomes a Strawberry type (the schema's shape, descriptions, introspection) whose resolvers
only pick values out of rows that came as JSON, and a `TypeDecl` from which `compile` makes SQL.
Annotations are strings and are looked up in `NAMESPACE`, where every declared type stands under its GraphQL
name, so that types of different modules refer to each other without importing each other.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Generic, Protocol, TypeVar

import strawberry
from strawberry.annotation import StrawberryAnnotation
from strawberry.types.arguments import StrawberryArgument
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver
from strawberry.types.unset import UNSET

from ekoyka.graph.ids import encode_sql


class Names(Protocol):
    """What SQL of a declaration may refer to; each call gives a placeholder with its type."""

    def actor(self, name: str) -> str:
        """A value of the actor, such as the ids of the places they work in."""

    def arg(self, name: str) -> str:
        """An argument of the field."""

    def scope(self, type_name: str, row: str) -> str:
        """The condition that the actor may see a row of another type."""

    def value(self, name: str, pg: str) -> str:
        """A value handed over when the statement runs: the key of a payload's row, a refusal's fields."""


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

    ``absent(alias)`` is the condition that holds where the client says nothing.
    """

    sql: Callable[[str, str], str]
    absent: Callable[[str], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Order:
    """An orderable value; never null, and of a PostgreSQL type that a cursor can carry."""

    sql: Callable[[str], str]
    pg: str
    description: str


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
    """A way to rows of another type."""

    target: str
    shape: Shape
    on: LinkSql
    source: RowSql | None = None
    order: Callable[[str, str], str] | None = None
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
    None: a value type, there wherever its parent is."""

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


NAMESPACE: dict[str, Any] = {"ID": strawberry.ID}
TYPES: dict[str, TypeDecl] = {}
# "Mutation.stayCheckIn" and the like -> the roles that may; query fields carry theirs themselves.
ROOT_ROLES: dict[str, frozenset[str]] = {}
ANONYMOUS = "ANONYMOUS"
"""The role of whoever has not signed in."""
_Declared = TypeVar("_Declared", bound=type)
_Row = TypeVar("_Row")


class Connection(Generic[_Row]):
    """In annotations: a Relay connection of the declared type."""


def column(description: str, *, name: str | None = None, roles: Iterable[str] | None = None) -> Any:
    """A field that is a column of the row."""

    def sql(row: str, names: Names) -> str:
        return f"{row}.{name or decl.name}"

    decl = ValueDecl(description=description, roles=_roles(roles), sql=sql)
    return decl


def expression(sql: RowSql, description: str, *, roles: Iterable[str] | None = None) -> Any:
    """A field computed by PostgreSQL from the row."""
    return ValueDecl(description=description, roles=_roles(roles), sql=sql)


def key_of(type_name: str, key: Callable[[str], str], description: str) -> Any:
    """A field that is the global id of a row of another type."""
    return ValueDecl(description=description, sql=lambda row, names: encode_sql(type_name, key(row)))


def one(
    on: str | LinkSql,
    description: str,
    *,
    target: str | None = None,
    roles: Iterable[str] | None = None,
    source: RowSql | None = None,
    args: Mapping[str, Arg] | None = None,
) -> Any:
    """A field that is one row: by this row's foreign key, or by a condition."""
    condition: LinkSql = (
        (lambda parent, child, names: f"{child}.id = {parent}.{on}") if isinstance(on, str) else on
    )
    return LinkDecl(
        description=description,
        roles=_roles(roles),
        target=target or "",
        shape=Shape.ONE,
        on=condition,
        source=source,
        args=args or {},
    )


def embedded(source: RowSql, description: str, *, roles: Iterable[str] | None = None) -> Any:
    """A field that is a value type computed by a parenthesised SELECT over this row."""
    return one(lambda parent, child, names: "true", description, source=source, roles=roles)


def many(
    on: str | LinkSql,
    description: str,
    *,
    roles: Iterable[str] | None = None,
    args: Mapping[str, Arg] | None = None,
) -> Any:
    """A connection: by the other rows' foreign key to this one, or by a condition."""
    condition: LinkSql = (
        (lambda parent, child, names: f"{child}.{on} = {parent}.id") if isinstance(on, str) else on
    )
    return LinkDecl(
        description=description,
        roles=_roles(roles),
        target="",
        shape=Shape.CONNECTION,
        on=condition,
        args=args or {},
    )


def listing(
    on: LinkSql,
    description: str,
    *,
    order: Callable[[str, str], str],
    source: RowSql | None = None,
    roles: Iterable[str] | None = None,
    args: Mapping[str, Arg] | None = None,
) -> Any:
    """A plain list, short by nature; ``order(parent, child)`` is its ORDER BY."""
    return LinkDecl(
        description=description,
        roles=_roles(roles),
        target="",
        shape=Shape.LIST,
        on=on,
        order=order,
        source=source,
        args=args or {},
    )


def any_node(
    refs: Callable[[str, Names], tuple[str, str]],
    description: str,
    *,
    many: bool = False,
    roles: Iterable[str] | None = None,
    args: Mapping[str, Arg] | None = None,
) -> Any:
    """A field that is a row of whichever node type its reference names."""
    return AbstractDecl(description=description, refs=refs, many=many, roles=_roles(roles), args=args or {})


def key(type_name: str, description: str, *, required: bool = True) -> Arg:
    """An argument that is the global id of a row of this type."""
    return Arg(type="ID" if required else "ID | None", pg="bigint", description=description, key_of=type_name)


def type_(
    *,
    description: str,
    table: str | None = None,
    scope: Mapping[str, RowSql] | None = None,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, Filter] | None = None,
    orders: Mapping[str, Order] | None = None,
    default_order: tuple[tuple[str, str], ...] = (),
    node: bool = False,
    interfaces: tuple[type, ...] = (),
    marker: RowSql | None = None,
) -> Callable[[_Declared], _Declared]:
    """The class is a GraphQL object type over a table, or over a SELECT that its parent gives.

    A ``node`` has an id, stands in `node(id)` and gets a connection; ``scope`` says which rows each role
    sees. ``columns`` (name -> PostgreSQL type) make a type of values handed over when the statement runs,
    such as a refusal's. ``marker`` is a value that its payloads bear for the server under the key ``#``,
    which no client sees.
    """

    def declare(cls: _Declared) -> _Declared:
        fields = _fields_of(cls)
        if node:
            fields = {
                "id": ValueDecl(
                    description="Opaque global id.",
                    name="id",
                    annotation="ID",
                    sql=lambda row, names: encode_sql(cls.__name__, f"{row}.id"),
                ),
                **fields,
            }
        decl = TypeDecl(
            name=cls.__name__,
            source=table,
            fields={item.graphql_name: item for item in fields.values()},
            scope=scope,
            columns=columns or {},
            where=where or {},
            orders=orders or {},
            default_order=default_order,
            node=node,
            marker=marker,
        )
        TYPES[decl.name] = decl
        bases = (*((Node,) if node else ()), *interfaces)
        _strawberry_type(decl, fields, description, bases)
        if node:
            _connection_of(decl)
        return cls

    return declare


def query(cls: _Declared) -> _Declared:
    """The class is the schema's query type; each field is a link that starts nowhere, and says who may use it."""
    fields = _fields_of(cls)
    undeclared = [item.name for item in fields.values() if item.roles is None]
    assert not undeclared, f"who may ask for {undeclared}?"
    decl = TypeDecl(
        name="Query", source=None, fields={item.graphql_name: item for item in fields.values()}, scope=None
    )
    TYPES["Query"] = decl
    _strawberry_type(decl, fields, "Reading.", ())
    return cls


def enum(cls: type[StrEnum], description: str, values: Mapping[str, str]) -> None:
    """The enum is in the schema; ``values`` describes each of its members, which are named as stored."""
    assert {member.name: member.value for member in cls} == {name: name for name in values}
    graphql: Any = strawberry.enum(cls, description=description)
    for item in graphql.__strawberry_definition__.values:
        item.description = values[item.name]
    NAMESPACE[cls.__name__] = graphql


def check() -> None:
    """Nothing declared contradicts itself. Raises `AssertionError` when the server would start wrong.

    A field that fewer roles may see than its row is null for the others, so it must be nullable; every link
    leads to a declared type.
    """
    for decl in TYPES.values():
        for item in decl.fields.values():
            where = f"{decl.name}.{item.graphql_name}"
            if isinstance(item, LinkDecl):
                assert item.target in TYPES, f"{where} leads to an undeclared {item.target}"
            if decl.name != "Query" and item.roles is not None and decl.scope is not None:
                hidden = decl.scope.keys() - item.roles
                assert not hidden or item.annotation.endswith("| None"), (
                    f"{where} is hidden from {hidden}: let it be null"
                )


def scalar(name: str, definition: Any) -> None:
    """The scalar is known to annotations under this name."""
    NAMESPACE[name] = definition


def _roles(roles: Iterable[str] | None) -> frozenset[str] | None:
    return None if roles is None else frozenset(roles)


def _fields_of(cls: type) -> dict[str, FieldDecl]:
    """The declared fields of a class and its bases, in the order they are written, with their annotations."""
    fields: dict[str, FieldDecl] = {}
    for part in reversed(cls.__mro__):
        annotations = inspect.get_annotations(part)
        for name, declared in vars(part).items():
            if isinstance(declared, FieldDecl):
                declared.name = name
                annotation = str(annotations[name])
                if isinstance(declared, LinkDecl):
                    declared.annotation, declared.target = _link_annotation(annotation, declared)
                else:
                    declared.annotation = annotation
                fields[name] = declared
    return fields


def _link_annotation(annotation: str, link: LinkDecl) -> tuple[str, str]:
    """The annotation in terms of generated types, and the name of the type that the link leads to."""
    text = annotation.replace("graph.", "")
    bare = text.removesuffix("| None").strip()
    optional = " | None" if bare != text.strip() else ""
    if link.shape is Shape.CONNECTION:
        target = bare.removeprefix("Connection[").removesuffix("]").strip()
        return f"{target}Connection{optional}", target
    return text, bare.removeprefix("list[").removesuffix("]").strip()


def _pick(root: Any, info: strawberry.Info, **_: Any) -> Any:
    """A field's value is in the row already, under the name that the client asked for."""
    return root[info.path.key]


async def _run(root: Any, info: strawberry.Info, **_: Any) -> Any:
    """A root field's statement is run, where the operation as a whole was not answered by compiled SQL."""
    return await info.context.run_root(info.path.key)


def annotation(text: str) -> StrawberryAnnotation:
    """A type by its text, looked up among the declared ones when the schema is built."""
    return StrawberryAnnotation(text, namespace=NAMESPACE)


def argument(name: str, type_text: str, description: str) -> StrawberryArgument:
    """A field's argument; one that may be null is optional."""
    return StrawberryArgument(
        python_name=name,
        graphql_name=camel(name),
        type_annotation=annotation(type_text),
        description=description,
        default=UNSET,
    )


PAGE_ARGUMENTS = (
    ("first", "int | None", "So many from the beginning, or after `after`: 1 to 100, 20 if nothing is said."),
    ("after", "str | None", "The cursor after which to begin."),
    ("last", "int | None", "So many from the end, or before `before`: 1 to 100."),
    ("before", "str | None", "The cursor before which to end."),
)


def _strawberry_field(decl: FieldDecl, resolver: Callable[..., Any]) -> StrawberryField:
    made = StrawberryField(
        python_name=decl.name,
        graphql_name=decl.graphql_name,
        type_annotation=annotation(decl.annotation),
        description=decl.description,
        base_resolver=StrawberryResolver(resolver),
    )
    arguments: list[StrawberryArgument] = []
    if isinstance(decl, LinkDecl | AbstractDecl):
        arguments += [
            argument(name, arg.type, arg.description)
            for name, arg in decl.args.items()
            if arg.part_of is None
        ]
    if isinstance(decl, LinkDecl) and decl.shape is Shape.CONNECTION:
        arguments += [argument(*page) for page in PAGE_ARGUMENTS]
        arguments.append(
            argument("where", f"{decl.target}Where | None", "Only rows for which all of it holds.")
        )
        arguments.append(
            argument("order_by", f"list[{decl.target}Order] | None", "The order; ties are broken by id.")
        )
    made.arguments = arguments
    return made


def _strawberry_type(
    decl: TypeDecl, fields: Mapping[str, FieldDecl], description: str, bases: tuple[type, ...]
) -> None:
    resolver = _run if decl.name == "Query" else _pick
    body = {name: _strawberry_field(item, resolver) for name, item in fields.items()}
    body["is_type_of"] = classmethod(  # type: ignore[assignment]
        lambda cls, row, info: isinstance(row, dict) and row.get("") in (None, decl.name)
    )
    NAMESPACE[decl.name] = _made(strawberry.type, decl.name, description, body, bases)


def _made(
    decorate: Callable[..., Any],
    name: str,
    description: str,
    body: Mapping[str, Any],
    bases: tuple[type, ...] = (),
) -> Any:
    """A Strawberry type of these fields. Dataclasses drop the annotations' namespace, so it is set again."""
    annotations = {
        item.python_name: item.type_annotation for item in body.values() if isinstance(item, StrawberryField)
    }
    bare = type(name, bases, {**body, "__annotations__": {}, "__module__": __name__})
    made = decorate(bare, name=name, description=description)
    for item in made.__strawberry_definition__.fields:
        item.type_annotation = annotations.get(item.python_name, item.type_annotation)
    return made


def _connection_of(decl: TypeDecl) -> None:
    name = decl.name
    NAMESPACE[f"{name}Edge"] = _plain(
        f"{name}Edge",
        "A row and its place in the order.",
        {"node": (name, "The row."), "cursor": ("str", "Its place, for `after` and `before`.")},
    )
    NAMESPACE[f"{name}Connection"] = _plain(
        f"{name}Connection",
        f"A page of {name}.",
        {
            "edges": (f"list[{name}Edge]", "The page's rows."),
            "page_info": ("PageInfo", "What lies before and after the page."),
            "total_count": ("int", "How many rows there are on all pages; counted only when asked for."),
        },
    )
    _input(
        f"{name}Where",
        f"A condition on {name}; all that is given must hold.",
        {item: (arg.type, arg.description) for item, arg in decl.where.items()},
    )
    members = {item.upper(): item.upper() for item in decl.orders}
    order_field: Any = StrEnum
    enum(
        order_field(f"{name}OrderField", members),
        f"What {name} can be ordered by.",
        {item.upper(): order.description for item, order in decl.orders.items()},
    )
    _input(
        f"{name}Order",
        f"One part of an order of {name}.",
        {
            "field": (f"{name}OrderField", "By what."),
            "direction": ("OrderDirection", "Which way."),
        },
    )


def _plain(
    name: str,
    description: str,
    fields: Mapping[str, tuple[str, str]],
    decorate: Callable[..., Any] = strawberry.type,
) -> Any:
    body = {
        item: _strawberry_field(FieldDecl(name=item, annotation=type_text, description=text), _pick)
        for item, (type_text, text) in fields.items()
    }
    return _made(decorate, name, description, body)


def _input(name: str, description: str, fields: Mapping[str, tuple[str, str]]) -> None:
    body = {
        item: StrawberryField(
            python_name=item,
            graphql_name=camel(item),
            type_annotation=annotation(type_text),
            description=text,
            default=UNSET if type_text.endswith("| None") else dataclasses.MISSING,
        )
        for item, (type_text, text) in fields.items()
    }
    NAMESPACE[name] = _made(strawberry.input, name, description, body)


def interface(name: str, description: str, fields: Mapping[str, tuple[str, str]]) -> type:
    """An interface of these fields (name -> type, description); its types declare them again."""
    NAMESPACE[name] = _plain(name, description, fields, strawberry.interface)
    made: type = NAMESPACE[name]
    return made


def object_of_fields(name: str, description: str, fields: Mapping[str, StrawberryField]) -> type:
    """A plain Strawberry type of ready fields, for the mutation and subscription types."""
    made: type = _made(strawberry.type, name, description, fields)
    return made


Node = interface("Node", "Anything with a global id.", {"id": ("ID", "Opaque global id.")})


class OrderDirection(StrEnum):
    """Which way an order goes."""

    ASC = "ASC"
    DESC = "DESC"


enum(OrderDirection, "Which way an order goes.", {"ASC": "Smallest first.", "DESC": "Largest first."})
NAMESPACE["PageInfo"] = _plain(
    "PageInfo",
    "What lies before and after a page.",
    {
        "has_next_page": ("bool", "Whether there is more after it."),
        "has_previous_page": ("bool", "Whether there is more before it."),
        "start_cursor": ("str | None", "The cursor of its first row."),
        "end_cursor": ("str | None", "The cursor of its last row."),
    },
)
