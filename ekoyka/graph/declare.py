"""How types are declared: what a GraphQL type is over its table, who may see which field, which rows are there.

A declared class becomes a Strawberry type and a `TypeDecl`, from which `compile` makes SQL.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from ekoyka.graph.ids import encode_sql
from ekoyka.graph.model import (
    ANONYMOUS,
    ROOT_COSTS,
    ROOT_ROLES,
    SEARCH_COST,
    TYPES,
    USUAL_LIST,
    AbstractDecl,
    Arg,
    FieldDecl,
    Filter,
    LinkDecl,
    LinkSql,
    Names,
    Order,
    RowSql,
    Shape,
    TypeDecl,
    ValueDecl,
    camel,
)
from ekoyka.graph.types import (
    NAMESPACE,
    Node,
    annotation,
    argument,
    connection_types,
    enum,
    interface,
    object_of_fields,
    scalar,
    strawberry_type,
)

# All that the API's modules need to declare their part of the graph stands here under one name.
__all__ = [
    "ANONYMOUS",
    "NAMESPACE",
    "ROOT_COSTS",
    "ROOT_ROLES",
    "SEARCH_COST",
    "TYPES",
    "Arg",
    "Connection",
    "Filter",
    "Names",
    "Order",
    "RowSql",
    "annotation",
    "any_node",
    "argument",
    "camel",
    "check",
    "column",
    "embedded",
    "enum",
    "expression",
    "interface",
    "key",
    "key_of",
    "listing",
    "many",
    "object_of_fields",
    "one",
    "query",
    "scalar",
    "type_",
]

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
    same_scope: bool = False,
    joined: bool = False,
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
        same_scope=same_scope,
        joined=joined,
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
    default_order: tuple[tuple[str, str], ...] = (),
    same_scope: bool = False,
    args: Mapping[str, Arg] | None = None,
) -> Any:
    """A connection: by the other rows' foreign key to this one, or by a condition.

    ``default_order`` is the type's own unless one is given.
    """
    condition: LinkSql = (
        (lambda parent, child, names: f"{child}.{on} = {parent}.id") if isinstance(on, str) else on
    )
    return LinkDecl(
        description=description,
        roles=_roles(roles),
        target="",
        shape=Shape.CONNECTION,
        on=condition,
        default_order=default_order,
        same_scope=same_scope,
        args=args or {},
    )


def listing(
    on: LinkSql,
    description: str,
    *,
    order: Callable[[str, str], str],
    source: RowSql | None = None,
    roles: Iterable[str] | None = None,
    same_scope: bool = False,
    usual: int = USUAL_LIST,
    args: Mapping[str, Arg] | None = None,
) -> Any:
    """A plain list, short by nature (``usual`` rows); ``order(parent, child)`` is its ORDER BY."""
    return LinkDecl(
        description=description,
        roles=_roles(roles),
        target="",
        shape=Shape.LIST,
        on=on,
        order=order,
        source=source,
        same_scope=same_scope,
        usual=usual,
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
    person: RowSql | None = None,
    person_by: str | None = None,
) -> Callable[[_Declared], _Declared]:
    """The class is a GraphQL object type over a table, or over a SELECT that its parent gives.

    A ``node`` has an id, stands in `node(id)` and gets a connection; ``scope`` says which rows each role
    sees. ``columns`` (name -> PostgreSQL type) make a type of values handed over when the statement runs,
    such as a refusal's. ``marker`` is a value that its payloads bear for the server under the key ``#``,
    which no client sees. ``person`` says whose record a row is, for the access log; ``person_by`` names the field
    that leads to a row which says so itself.
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
            person=person,
            person_by=person_by,
        )
        TYPES[decl.name] = decl
        bases = (*((Node,) if node else ()), *interfaces)
        strawberry_type(decl, fields, description, bases)
        if node:
            connection_types(decl)
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
    strawberry_type(decl, fields, "Reading.", ())
    return cls


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
