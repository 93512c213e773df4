"""Which rows a connection's page holds: filters, order, and the place that a cursor names.

A cursor is base64 of the order's signature and the row's keys, so that it means nothing to a list in another
order. Pages are chosen by comparing keys, never by counting rows, and cost the same at any depth.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from graphql import FieldNode, VariableNode, get_argument_values

from ekoyka.graph.ids import BadInput
from ekoyka.graph.model import Arg, TypeDecl, camel
from ekoyka.graph.values import writable

if TYPE_CHECKING:
    from ekoyka.graph.compile import Binding, Compiler, Site

LARGEST_PAGE = 100
USUAL_PAGE = 20


@dataclass(frozen=True)
class Page:
    """SQL of one connection's page: where all its rows are, their condition, the page's own, what it is ordered
    by, which way each of that goes (reversed when the page goes backwards), how many rows it holds at most, and
    each row's cursor. ``resumed``: it goes on from a cursor."""

    source: str
    every: str
    condition: str
    keys: tuple[str, ...]
    ways: tuple[str, ...]
    size: str
    cursor: str
    backwards: bool
    resumed: bool


@dataclass(frozen=True)
class _Key:
    """One part of an order."""

    name: str
    sql: str
    pg: str
    descending: bool


def choose_page(
    compiler: Compiler,
    decl: TypeDecl,
    default_order: tuple[tuple[str, str], ...],
    source: str,
    row: str,
    condition: str,
    site: int,
    at: Site,
) -> Page:
    """The page that the arguments ask for, among the source's rows of a condition. Raises `BadInput`."""
    given = get_argument_values(at.definition, at.node, compiler.variables)
    asked = {name: value for name, value in given.items() if value is not None}
    if ("last" in asked and ("first" in asked or "after" in asked)) or (
        "first" in asked and "before" in asked
    ):
        raise BadInput("Page forwards with `first` and `after`, or backwards with `last` and `before`.")
    backwards = "last" in asked or "before" in asked
    where = asked.get("where", {})
    for name, item in decl.where.items():
        if where.get(camel(name)) is not None:
            if item.pg == "boolean":
                # A plan depends on these values anyway; as constants they let partial indexes be used.
                value = str(where[camel(name)]).lower()
            else:
                value = compiler.argument((site, ("where", camel(name))), item)
            if item.first:
                # OFFSET keeps it a query of its own.
                source = f"(SELECT {row}.* FROM {source} {row} WHERE {item.sql(row, value)} OFFSET 0)"
            else:
                condition = every(condition, item.sql(row, value))
        elif item.absent is not None:
            condition = every(condition, item.absent(row))
    limit = "last" if backwards else "first"
    # A number that stands in the document is one for the planner too; a variable is a parameter.
    size = (
        compiler.argument((site, (limit,)), _PAGE_SIZE)
        if _is_variable(at.node, limit)
        else str(_page_size(asked.get(limit)))
    )
    keys = _keys(decl, asked.get("orderBy") or [], default_order, row)
    signature = ",".join(f"{key.name}{'-' if key.descending else ''}" for key in keys)
    edge = "before" if backwards else "after"
    paged = condition
    if edge in asked:
        places = [
            compiler.parameter(
                (site, edge, number),
                f"text::{key.pg}",
                partial(_cursor_part, site, edge, signature, keys, number),
            )
            for number, key in enumerate(keys)
        ]
        paged = every(condition, _beyond(keys, places, backwards))
    return Page(
        source=source,
        every=condition,
        condition=paged,
        keys=tuple(key.sql for key in keys),
        ways=tuple("DESC" if key.descending != backwards else "ASC" for key in keys),
        size=size,
        # encode() breaks its lines.
        cursor=(
            f"translate(encode(convert_to(json_build_array('{signature}', "
            f"{', '.join(key.sql for key in keys)})::text, 'UTF8'), 'base64'), E'\\n', '')"
        ),
        backwards=backwards,
        resumed=edge in asked,
    )


def _keys(
    decl: TypeDecl, order_by: list[dict[str, Any]], default_order: tuple[tuple[str, str], ...], row: str
) -> list[_Key]:
    """The order's parts, ties broken by id."""
    wanted = [(str(part["field"].value).lower(), part["direction"].value == "DESC") for part in order_by]
    if not wanted:
        wanted = [(name, way == "DESC") for name, way in default_order]
    if len({name for name, _ in wanted}) != len(wanted):
        raise BadInput("`orderBy` names a field twice.")
    keys = [_Key(name, decl.orders[name].sql(row), decl.orders[name].pg, down) for name, down in wanted]
    return [*keys, _Key("id", f"{row}.id", "bigint", keys[-1].descending if keys else False)]


def _beyond(keys: list[_Key], places: list[str], backwards: bool) -> str:
    """The condition of lying past the cursor, in the order's direction."""
    if len({key.descending for key in keys}) == 1:
        # One comparison of rows, which an index answers.
        sign = "<" if keys[0].descending != backwards else ">"
        return f"({', '.join(key.sql for key in keys)}) {sign} ({', '.join(places)})"
    steps = []
    for number, key in enumerate(keys):
        equal = [f"{other.sql} = {place}" for other, place in zip(keys[:number], places, strict=False)]
        sign = "<" if key.descending != backwards else ">"
        steps.append("(" + " AND ".join([*equal, f"{key.sql} {sign} {places[number]}"]) + ")")
    return "(" + " OR ".join(steps) + ")"


def _is_variable(node: FieldNode, name: str) -> bool:
    return any(
        argument.name.value == name and isinstance(argument.value, VariableNode)
        for argument in node.arguments or ()
    )


def _page_size(value: int | None) -> int:
    if value is None:
        return USUAL_PAGE
    if not 1 <= value <= LARGEST_PAGE:
        raise BadInput(f"`first` and `last` are from 1 to {LARGEST_PAGE}.")
    return value


_PAGE_SIZE = Arg(type="int | None", pg="int", description="", decode=_page_size)
_PARSED: dict[str, Callable[[Any], object]] = {
    "timestamptz": datetime.fromisoformat,
    "date": date.fromisoformat,
    "bigint": int,
    "int": int,
    "text": str,
}


def _cursor_part(site: int, edge: str, signature: str, keys: list[_Key], number: int, run: Binding) -> str:
    return _decode(run.arguments(site)[edge], signature, keys)[number]


def _decode(value: str, signature: str, keys: list[_Key]) -> list[str]:
    """The texts of the order's keys in a cursor. Raises `BadInput` for one that is not of this order."""
    try:
        found = orjson.loads(base64.b64decode(value, validate=True))
        if isinstance(found, list) and len(found) == len(keys) + 1:
            if found[0] != signature:
                raise BadInput("This cursor belongs to a list in another order.")
            for key, part in zip(keys, found[1:], strict=True):
                _PARSED[key.pg](part)
            return [writable(str(part)) for part in found[1:]]
    except (binascii.Error, ValueError, TypeError):
        pass
    raise BadInput("This is not a cursor that this server gave out.")


def every(*conditions: str) -> str:
    """SQL of all conditions together."""
    wanted = [condition for condition in conditions if condition != "true"]
    return " AND ".join(wanted) if wanted else "true"
