"""From declarations to Strawberry's types: the schema's shape, its descriptions, its introspection.

The resolvers only pick values out of rows that came as JSON. Annotations are texts, looked up in `NAMESPACE`
when the schema is built, where every type stands under its GraphQL name: so types of different modules refer
to each other without importing each other.
"""

import dataclasses
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import strawberry
from strawberry.annotation import StrawberryAnnotation
from strawberry.types.arguments import StrawberryArgument
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver
from strawberry.types.unset import UNSET

from ekoyka.graph.model import AbstractDecl, FieldDecl, LinkDecl, Shape, TypeDecl, camel

NAMESPACE: dict[str, Any] = {"ID": strawberry.ID}


def enum(cls: type[StrEnum], description: str, values: Mapping[str, str]) -> None:
    """The enum is in the schema; ``values`` describes each of its members, which are named as stored."""
    assert {member.name: member.value for member in cls} == {name: name for name in values}
    graphql: Any = strawberry.enum(cls, description=description)
    for item in graphql.__strawberry_definition__.values:
        item.description = values[item.name]
    NAMESPACE[cls.__name__] = graphql


def scalar(name: str, definition: Any) -> None:
    """The scalar is known to annotations under this name."""
    NAMESPACE[name] = definition


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


def strawberry_type(
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


def connection_types(decl: TypeDecl) -> None:
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
