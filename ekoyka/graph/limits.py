"""How much one operation may ask for: measured on its text, before anything else is done with it.

One walk over the parsed document, which sees each fragment once however often it is spread, so that a small
document that unfolds into millions of fields is refused in the time that its own length takes. What a walk
counts is what the operation unfolds to: fields behind fragments count wherever they are spread.

A cost is the number of objects that an answer may hold, and what is looked through for them as so many objects
more. A page multiplies what is asked of its rows by its size, which may be a variable, so costs are polynomials
of variables and are worked out for each request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from graphql import (
    DocumentNode,
    EnumValueNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    NullValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    is_list_type,
    is_non_null_type,
)

from ekoyka.graph.model import ROOT_COSTS, TYPES, USUAL_LIST, LinkDecl, Shape, TypeDecl, camel

MAX_TOKENS: Final = 1000
MAX_COST: Final = 5000
# Of an operation, in the words of its refusal.
MOST: Final = {"depth": 10, "aliases": 15, "directives": 8, "root fields": 20}
# Levels of the text, `edges` and introspection included; deeper than any client's, and what bounds the walk.
_DEEPEST: Final = 40
_USUAL_PAGE: Final = 20
# What is no row of an answer, in objects: a count of all rows there are, the description of the schema.
_COUNT: Final = 200
_INTROSPECTION: Final = {"__schema": 3000, "__type": 200}
# Arguments of connections that may make PostgreSQL look through more than it gives.
_LOOK_THROUGH: Final = ("where", "orderBy")
_ANY: Final = "*"
# What is told of what was asked: the product of all pages may be larger than a client's numbers can be.
_MOST_TOLD: Final = 2**53 - 1
# Types of which no level is one that a person would call so: the rows are what is paged.
_WRAPPERS: Final = ("Connection", "Edge")

_Cost = dict[tuple[str, ...], int]
"""A polynomial: for each product of factors, its coefficient; () is the constant.

A factor is a variable that is a page's size, or «variable argument type»: one that is the filters or the order
of a connection of the type.
"""


def too_much(what: str, asked: int, most: int) -> GraphQLError:
    """The refusal of an operation that asks for too much."""
    asked = min(asked, _MOST_TOLD)
    return GraphQLError(
        f"The operation asks for too much: {what} {asked}, and at most {most} is allowed.",
        extensions={"code": "QUERY_TOO_EXPENSIVE", "limit": what, "asked": asked, "allowed": most},
    )


@dataclass
class Measure:
    """What a part of a document unfolds to."""

    depth: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    cost: _Cost = field(default_factory=dict)

    def add(self, other: Measure, *, times: tuple[int, tuple[str, ...]] = (1, ()), deeper: int = 0) -> None:
        """The other part is one of this, whose objects come so many times, by these variables."""
        self.depth = max(self.depth, other.depth + deeper)
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        number, variables = times
        for product, count in other.cost.items():
            key = tuple(sorted((*product, *variables)))
            self.cost[key] = self.cost.get(key, 0) + count * number

    def count(self, name: str, number: int) -> None:
        """So many more of it."""
        if number:
            self.counts[name] = self.counts.get(name, 0) + number

    def price(self, variables: Mapping[str, Any]) -> int:
        """The cost with these variables."""
        total = 0
        for product, count in self.cost.items():
            for factor in product:
                name, *meant = factor.split(" ")
                value = variables.get(name)
                if meant:
                    argument, type_name = meant
                    count *= _looked_through(TYPES[type_name], argument, _names_in(argument, value))
                else:
                    count *= _size(value)
            total += count
        return total


def _size(value: Any) -> int:
    if isinstance(value, bool) or value is None:
        return _USUAL_PAGE
    if isinstance(value, list):
        return len(value)
    return max(value, 0) if isinstance(value, int) else 1


def _looked_through(decl: TypeDecl, argument: str, names: set[str]) -> int:
    """What these filters or orders of a connection of the type cost beside its rows."""
    if argument == "where":
        return sum(item.cost for name, item in decl.where.items() if camel(name) in names)
    return sum(item.cost for name, item in decl.orders.items() if not names.isdisjoint({name.upper(), _ANY}))


def _names_in(argument: str, value: Any) -> set[str]:
    """The filters or orders in the value of a variable."""
    if argument == "where":
        return (
            {name for name, item in value.items() if item is not None} if isinstance(value, dict) else set()
        )
    parts = value if isinstance(value, list) else [value]
    return {str(getattr(part["field"], "value", part["field"])) for part in parts if isinstance(part, dict)}


def _names_in_text(argument: str, node: ValueNode) -> set[str]:
    """The filters or orders in a value as the document has it; one that a variable names may be any."""
    if argument == "where":
        given = node.fields if isinstance(node, ObjectValueNode) else ()
        return {item.name.value for item in given if not isinstance(item.value, NullValueNode)}
    names = set()
    for part in node.values if isinstance(node, ListValueNode) else (node,):
        for item in part.fields if isinstance(part, ObjectValueNode) else ():
            if item.name.value == "field":
                names.add(item.value.value if isinstance(item.value, EnumValueNode) else _ANY)
        if isinstance(part, VariableNode):
            names.add(_ANY)
    return names


class _TooDeep(Exception):
    pass


class Meter:
    """Measures the operations of one document."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode) -> None:
        self._schema = schema
        self._document = document
        self._fragments = {
            item.name.value: item for item in document.definitions if isinstance(item, FragmentDefinitionNode)
        }
        # None while it is being measured: a fragment that spreads itself is validation's to refuse.
        self._known: dict[str, Measure | None] = {}

    def operations(self) -> Iterator[tuple[OperationDefinitionNode, Measure]]:
        """Each operation with its measure. Raises `GraphQLError` for one that asks for too much."""
        for item in self._document.definitions:
            if isinstance(item, OperationDefinitionNode):
                root = self._schema.get_root_type(item.operation)
                measure = Measure()
                measure.count("directives", len(item.directives or ()))
                try:
                    self._walk(item.selection_set, root, measure, 1)
                except _TooDeep:
                    raise too_much("depth", _DEEPEST + 1, MOST["depth"]) from None
                measure.counts["depth"] = measure.depth
                for what, most in MOST.items():
                    if measure.counts.get(what, 0) > most:
                        raise too_much(what, measure.counts[what], most)
                yield item, measure

    def _walk(self, selections: SelectionSetNode, parent: Any, measure: Measure, level: int) -> None:
        if level > _DEEPEST:
            raise _TooDeep
        for item in selections.selections:
            measure.count("directives", len(item.directives or ()))
            if isinstance(item, FieldNode):
                self._field(item, parent, measure, level)
            elif isinstance(item, InlineFragmentNode):
                condition = item.type_condition
                within = self._schema.get_type(condition.name.value) if condition else parent
                self._walk(item.selection_set, within, measure, level + 1)
            else:
                assert isinstance(item, FragmentSpreadNode)
                measure.add(self._fragment(item.name.value, level + 1))

    def _fragment(self, name: str, level: int) -> Measure:
        if name not in self._known:
            self._known[name] = None
            found = self._fragments.get(name)
            measure = Measure()
            if found is not None:
                within = self._schema.get_type(found.type_condition.name.value)
                measure.count("directives", len(found.directives or ()))
                self._walk(found.selection_set, within, measure, level)
            self._known[name] = measure
        return self._known[name] or Measure()

    def _field(self, node: FieldNode, parent: Any, measure: Measure, level: int) -> None:
        measure.count("aliases", 1 if node.alias else 0)
        measure.count("root fields", 1)
        if node.selection_set is None:
            measure.count("counts", int(node.name.value == "totalCount"))
            measure.depth = max(measure.depth, 1)
            return
        name = node.name.value
        fields = parent.fields if isinstance(parent, GraphQLObjectType | GraphQLInterfaceType) else {}
        definition: GraphQLField | None = fields.get(name)
        named = get_named_type(definition.type) if definition else self._introspected(name)
        # Introspection has a limit of its own in validation: it is deep by its nature.
        free = named is not None and named.name.startswith("__")
        wrapper = parent is not None and parent.name.endswith(_WRAPPERS)
        inside = Measure(cost={} if wrapper else {(): 1})
        self._walk(node.selection_set, named, inside, level + 1)
        inside.counts.pop("root fields", None)
        counted = inside.counts.pop("counts", 0)
        if free:
            inside.cost = {(): _INTROSPECTION.get(name, 0)} if definition is None else {}
            measure.add(inside)
            return
        for times in _times(node, definition, parent):
            measure.add(inside, times=times, deeper=0 if wrapper else 1)
            inside = Measure(cost=inside.cost)
        for product, cost in self._beside(node, parent, counted).items():
            measure.cost[product] = measure.cost.get(product, 0) + cost

    def _beside(self, node: FieldNode, parent: Any, counted: int) -> _Cost:
        """What the field costs beside the objects that it leads to, of which some are counted all."""
        if parent is None:
            return {}
        cost: _Cost = {(): ROOT_COSTS.get(f"{parent.name}.{node.name.value}", 0)}
        if parent is self._schema.query_type and counted:
            cost[()] += _COUNT
        link = TYPES[parent.name].fields.get(node.name.value) if parent.name in TYPES else None
        if isinstance(link, LinkDecl) and link.shape is Shape.CONNECTION:
            for item in node.arguments or ():
                argument = item.name.value
                if argument not in _LOOK_THROUGH:
                    continue
                if isinstance(item.value, VariableNode):
                    cost[(f"{item.value.name.value} {argument} {link.target}",)] = 1
                else:
                    names = _names_in_text(argument, item.value)
                    cost[()] += _looked_through(TYPES[link.target], argument, names)
        return cost

    def _introspected(self, name: str) -> Any:
        return self._schema.get_type({"__schema": "__Schema", "__type": "__Type"}.get(name, ""))


def _times(
    node: FieldNode, definition: GraphQLField | None, parent: Any
) -> list[tuple[int, tuple[str, ...]]]:
    """How many objects the field leads to, as terms of a sum: each a number, and variables that multiply it.

    Of `first` and `last` one alone counts, but which may be known when the variables are: so both are counted.
    """
    terms: list[tuple[int, tuple[str, ...]]] = []
    for item in node.arguments or ():
        value = item.value
        if item.name.value not in ("first", "last", "ids"):
            continue
        if isinstance(value, IntValueNode):
            terms.append((max(int(value.value), 0) if len(value.value) < 10 else 10**9, ()))
        elif isinstance(value, ListValueNode):
            terms.append((len(value.values), ()))
        elif isinstance(value, VariableNode):
            terms.append((1, (value.name.value,)))
    if terms or definition is None:
        return terms or [(1, ())]
    if "first" in definition.args:
        return [(_USUAL_PAGE, ())]
    type_ = definition.type.of_type if is_non_null_type(definition.type) else definition.type
    if not is_list_type(type_) or get_named_type(type_).name.endswith(_WRAPPERS):
        return [(1, ())]
    link = TYPES[parent.name].fields.get(node.name.value) if parent.name in TYPES else None
    return [(link.usual if isinstance(link, LinkDecl) else USUAL_LIST, ())]
