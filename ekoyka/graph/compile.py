"""From a validated selection to one SQL statement that returns the answer's JSON.

Every object is a `JSON_OBJECT` (PostgreSQL 16; unlike json_build_object it takes any number of fields), a
link to one row is a scalar subquery, a list an aggregate over one, a connection an aggregate over a page
chosen by its keys. Names in the SQL come from declarations and from GraphQL names (letters, digits,
underscores); every value is a bound parameter.

Permissions are decided here: a field that none of the actor's roles may see raises `FieldForbidden`; where
some of them may, the rows on which only the others look give null; a row outside the scope is not there.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLIncludeDirective,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLSkipDirective,
    InlineFragmentNode,
    SelectionSetNode,
    get_argument_values,
    get_directive_values,
    is_abstract_type,
)
from graphql.execution.values import VariableValues

from ekoyka.graph.model import (
    TYPES,
    AbstractDecl,
    Arg,
    FieldDecl,
    LinkDecl,
    Shape,
    TypeDecl,
    ValueDecl,
    camel,
)
from ekoyka.graph.pages import choose_page, every
from ekoyka.graph.values import at_path, ready

_PLACEHOLDER = re.compile(r"\$(\d+)")

Selections = dict[str, list[FieldNode]]
"""The fields of one object by response key, in the document's order."""


class FieldForbidden(Exception):
    """None of the actor's roles may see the field; ``path`` are the response keys down to it."""

    def __init__(self, path: tuple[str, ...], node: FieldNode) -> None:
        super().__init__("forbidden")
        self.path = path
        self.node = node


@dataclass(frozen=True)
class ActorShape:
    """The part of an actor that changes a plan: the kinds of roles, and what must still hold of them.

    ``values`` are the names and PostgreSQL types of the values that scopes may refer to. ``guard`` is the
    condition, made of those, under which an answer is given at all; None for whoever has not signed in.
    """

    roles: frozenset[str]
    values: Mapping[str, str]
    guard: Callable[[Callable[[str], str]], str] | None


@dataclass(frozen=True)
class Site:
    """A field with arguments, and where it stands in the document."""

    definition: GraphQLField
    node: FieldNode


Binder = Callable[["Binding"], Any]


@dataclass(frozen=True)
class Binding:
    """The values of one run of a statement."""

    actor: Mapping[str, Any]
    arguments: Sequence[Mapping[str, Any]]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Statement:
    """One SQL statement and how its parameters are made; its single value is JSON as text.

    SQL NULL, as opposed to the JSON ``null``, says that the actor is no longer who the token says.
    """

    sql: str
    binders: tuple[Binder, ...]
    checks: tuple[Binder, ...]
    sites: tuple[Site, ...]

    def bind(
        self, actor: Mapping[str, Any], variables: VariableValues, values: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """The parameters in order. Raises `BadInput` for an argument that cannot be meant."""
        arguments = [get_argument_values(site.definition, site.node, variables) for site in self.sites]
        binding = Binding(actor, arguments, values or {})
        for check in self.checks:
            check(binding)
        return [binder(binding) for binder in self.binders]


@dataclass
class _Names:
    """The placeholders that one field's SQL may refer to."""

    compiler: "Compiler"
    site: int | None = None
    args: Mapping[str, Arg] = field(default_factory=dict)

    def actor(self, name: str) -> str:
        return self.compiler.actor_value(name)

    def arg(self, name: str) -> str:
        assert self.site is not None
        arg = self.args[name]
        return self.compiler.argument((self.site, (camel(arg.part_of or name),)), arg)

    def scope(self, type_name: str, row: str) -> str:
        return self.compiler.scope(TYPES[type_name], row)

    def value(self, name: str, pg: str) -> str:
        return self.compiler.handed_over(name, pg)


class Compiler:
    """Compiles the selections of one statement for one document, variables' shape and actor's shape.

    ``marked``: rows of abstract fields bear their type's name under the empty key, for Strawberry's executor.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: Mapping[str, FragmentDefinitionNode],
        variables: VariableValues,
        actor: ActorShape,
        *,
        marked: bool = False,
    ) -> None:
        self.marked = marked
        self.schema = schema
        self.fragments = fragments
        self.variables = variables
        self.actor = actor
        self._binders: list[Binder] = []
        self._known: dict[object, str] = {}
        self._sites: list[Site] = []
        self._aliases = 0

    def statement(self, expression: str, *, guarded: bool) -> Statement:
        """The finished statement around a JSON expression."""
        if guarded and self.actor.guard is not None:
            sql = f"SELECT CASE WHEN {self.actor.guard(self.actor_value)} THEN ({expression})::text END"
        else:
            sql = f"SELECT ({expression})::text"
        # PostgreSQL refuses parameters that the text does not use; their values are still checked.
        used = sorted({int(number) for number in _PLACEHOLDER.findall(sql)})
        places = {number: place for place, number in enumerate(used, 1)}
        return Statement(
            _PLACEHOLDER.sub(lambda match: f"${places[int(match[1])]}", sql),
            tuple(self._binders[number - 1] for number in used),
            tuple(binder for number, binder in enumerate(self._binders, 1) if number not in places),
            tuple(self._sites),
        )

    # Parameters

    def parameter(self, identity: object, pg: str, binder: Binder) -> str:
        if identity not in self._known:
            self._binders.append(binder)
            self._known[identity] = f"${len(self._binders)}::{pg}"
        return self._known[identity]

    def actor_value(self, name: str) -> str:
        return self.parameter(("actor", name), self.actor.values[name], lambda run: run.actor[name])

    def handed_over(self, name: str, pg: str) -> str:
        return self.parameter(("value", name), pg, lambda run: run.values[name])

    def argument(self, at: tuple[int, tuple[str | int, ...]], arg: Arg) -> str:
        site, path = at
        return self.parameter(
            (at, arg.pg), arg.pg, lambda run: ready(arg, at_path(run.arguments[site], path))
        )

    # Selections

    def collect(self, type_name: str, sets: Sequence[SelectionSetNode]) -> Selections:
        """The fields selected on an object of this type, fragments and directives resolved."""
        fields: Selections = {}
        for selection_set in sets:
            self._collect(type_name, selection_set, fields, set())
        return fields

    def _collect(
        self, type_name: str, selection_set: SelectionSetNode, fields: Selections, seen: set[str]
    ) -> None:
        for node in selection_set.selections:
            if not self._included(node):
                continue
            if isinstance(node, FieldNode):
                fields.setdefault(node.alias.value if node.alias else node.name.value, []).append(node)
            elif isinstance(node, InlineFragmentNode):
                if self._applies(node.type_condition.name.value if node.type_condition else None, type_name):
                    self._collect(type_name, node.selection_set, fields, seen)
            elif isinstance(node, FragmentSpreadNode) and node.name.value not in seen:
                seen.add(node.name.value)
                fragment = self.fragments[node.name.value]
                if self._applies(fragment.type_condition.name.value, type_name):
                    self._collect(type_name, fragment.selection_set, fields, seen)

    def _included(self, node: Any) -> bool:
        if not node.directives:
            return True
        skip = get_directive_values(GraphQLSkipDirective, node, self.variables)
        include = get_directive_values(GraphQLIncludeDirective, node, self.variables)
        return not (skip and skip["if"]) and (include is None or bool(include["if"]))

    def _applies(self, condition: str | None, type_name: str) -> bool:
        if condition is None or condition == type_name:
            return True
        wider, narrower = self.schema.type_map[condition], self.schema.type_map[type_name]
        return (
            is_abstract_type(wider)
            and isinstance(narrower, GraphQLObjectType)
            and self.schema.is_sub_type(wider, narrower)
        )

    def names_type(self, type_name: str, sets: Sequence[SelectionSetNode]) -> bool:
        """Whether a fragment asks for this very type, as opposed to an interface of its."""
        pending, seen = list(sets), set[str]()
        while pending:
            for node in pending.pop().selections:
                if isinstance(node, InlineFragmentNode) and self._included(node):
                    if node.type_condition is not None and node.type_condition.name.value == type_name:
                        return True
                    pending.append(node.selection_set)
                elif (
                    isinstance(node, FragmentSpreadNode)
                    and node.name.value not in seen
                    and self._included(node)
                ):
                    seen.add(node.name.value)
                    fragment = self.fragments[node.name.value]
                    if fragment.type_condition.name.value == type_name:
                        return True
                    pending.append(fragment.selection_set)
        return False

    # Objects

    def _alias(self) -> str:
        self._aliases += 1
        return f"t{self._aliases}"

    def scope(self, decl: TypeDecl, row: str, roles: frozenset[str] | None = None) -> str:
        """The condition under which the actor, by these roles of theirs, may see the row."""
        if decl.scope is None:
            return "true"
        names = _Names(self)
        parts = [
            rule(row, names)
            for role, rule in sorted(decl.scope.items())
            if role in self.actor.roles and (roles is None or role in roles)
        ]
        if not parts:
            return "false"
        if "true" in parts:
            return "true"
        return "(" + " OR ".join(dict.fromkeys(parts)) + ")"

    def visible(self, decl: TypeDecl) -> bool:
        """Whether any of the actor's roles may see any row of the type."""
        return decl.scope is None or not self.actor.roles.isdisjoint(decl.scope)

    def object(
        self,
        decl: TypeDecl,
        row: str,
        sets: Sequence[SelectionSetNode],
        path: tuple[str, ...],
        *,
        marked: bool = False,
    ) -> str:
        """The JSON of one row."""
        graphql_type = self.schema.type_map[decl.name]
        assert isinstance(graphql_type, GraphQLObjectType)
        parts = [f"'': '{decl.name}'::text"] if marked else []
        if decl.marker is not None:
            parts.append(f"'#': {decl.marker(row, _Names(self))}")
        for response_key, nodes in self.collect(decl.name, sets).items():
            name = nodes[0].name.value
            if name == "__typename":
                parts.append(f"'{response_key}': '{decl.name}'::text")
                continue
            field_decl = decl.fields[name]
            at = (*path, response_key)
            allowed = self._allowed(decl, field_decl, row, at, nodes[0])
            value = self.field(field_decl, graphql_type.fields[name], row, nodes, at)
            parts.append(
                f"'{response_key}': "
                + (value if allowed == "true" else f"CASE WHEN {allowed} THEN {value} END")
            )
        return f"JSON_OBJECT({', '.join(parts)} RETURNING json)"

    def _allowed(
        self, decl: TypeDecl, item: FieldDecl, row: str, path: tuple[str, ...], node: FieldNode
    ) -> str:
        if item.roles is None:
            return "true"
        if self.actor.roles.isdisjoint(item.roles):
            raise FieldForbidden(path, node)
        if decl.scope is None or not (self.actor.roles & decl.scope.keys()) - item.roles:
            return "true"
        return self.scope(decl, row, item.roles)

    def field(
        self,
        decl: FieldDecl,
        definition: GraphQLField,
        row: str,
        nodes: list[FieldNode],
        path: tuple[str, ...],
    ) -> str:
        """The JSON, or a value that becomes JSON, of one field."""
        if isinstance(decl, ValueDecl):
            return decl.sql(row, _Names(self))
        sets = [node.selection_set for node in nodes if node.selection_set]
        site = None
        if definition.args:
            site = len(self._sites)
            self._sites.append(Site(definition, nodes[0]))
        if isinstance(decl, AbstractDecl):
            return self._abstract(decl, row, site, sets, path)
        assert isinstance(decl, LinkDecl)
        names = _Names(self, site, decl.args)
        target = TYPES[decl.target]
        if not self.visible(target):
            raise FieldForbidden(path, nodes[0])
        child = self._alias()
        source = decl.source(row, names) if decl.source else target.source
        condition = every(decl.on(row, child, names), self.scope(target, child))
        if decl.shape is Shape.ONE:
            return (
                f"(SELECT {self.object(target, child, sets, path)} FROM {source} {child} WHERE {condition})"
            )
        if decl.shape is Shape.LIST:
            assert decl.order is not None
            return (
                f"(SELECT COALESCE(json_agg({self.object(target, child, sets, path)} "
                f"ORDER BY {decl.order(row, child)}), '[]') FROM {source} {child} WHERE {condition})"
            )
        assert site is not None
        return self._connection(
            target, str(source), child, condition, Site(definition, nodes[0]), site, sets, path
        )

    def _abstract(
        self,
        decl: AbstractDecl,
        row: str,
        site: int | None,
        sets: Sequence[SelectionSetNode],
        path: tuple[str, ...],
    ) -> str:
        type_name, key = decl.refs(row, _Names(self, site, decl.args))
        kind, number = ("ref.kind", "ref.key") if decl.many else (type_name, key)
        cases = []
        for target in TYPES.values():
            if not target.node or not (self.visible(target) or self.names_type(target.name, sets)):
                continue
            if not self.visible(target):
                node = next(
                    node for item in sets for node in item.selections if not isinstance(node, FieldNode)
                )
                raise FieldForbidden(path, node)  # type: ignore[arg-type]  # any node of the document will do
            child = self._alias()
            condition = every(f"{child}.id = {number}", self.scope(target, child))
            body = self.object(target, child, sets, path, marked=self.marked)
            cases.append(
                f"WHEN '{target.name}' THEN (SELECT {body} FROM {target.source} {child} WHERE {condition})"
            )
        chosen = f"CASE {kind} {' '.join(cases)} END" if cases else "NULL::json"
        if not decl.many:
            return chosen
        return (
            f"(SELECT COALESCE(json_agg({chosen} ORDER BY ref.place), '[]') "
            f"FROM unnest({type_name}, {key}) WITH ORDINALITY ref (kind, key, place))"
        )

    # Connections

    def _connection(
        self,
        decl: TypeDecl,
        source: str,
        row: str,
        condition: str,
        at: Site,
        site: int,
        sets: Sequence[SelectionSetNode],
        path: tuple[str, ...],
    ) -> str:
        given = get_argument_values(at.definition, at.node, self.variables)
        page = choose_page(self, decl, row, condition, site, given)
        on_page = f"{row}._n <= {page.size}"

        def sub(
            node_sets: Sequence[SelectionSetNode],
            type_name: str,
            render: Callable[[str, list[FieldNode], tuple[str, ...]], str],
            here: tuple[str, ...],
        ) -> str:
            parts = [
                f"'{key}': "
                + (
                    f"'{type_name}'::text"
                    if nodes[0].name.value == "__typename"
                    else render(nodes[0].name.value, nodes, (*here, key))
                )
                for key, nodes in self.collect(type_name, node_sets).items()
            ]
            return f"JSON_OBJECT({', '.join(parts)} RETURNING json)"

        def edges(name: str, nodes: list[FieldNode], here: tuple[str, ...]) -> str:
            return page.cursor if name == "cursor" else self.object(decl, row, _sets(nodes), here)

        def info(name: str, nodes: list[FieldNode], here: tuple[str, ...]) -> str:
            if name in ("hasNextPage", "hasPreviousPage"):
                ahead = (name == "hasNextPage") != page.backwards
                return f"count(*) > {page.size}" if ahead else ("true" if page.resumed else "false")
            way = "ASC" if (name == "startCursor") != page.backwards else "DESC"
            return f"(array_agg({page.cursor} ORDER BY {row}._n {way}) FILTER (WHERE {on_page}))[1]"

        def parts(name: str, nodes: list[FieldNode], here: tuple[str, ...]) -> str:
            if name == "edges":
                body = sub(_sets(nodes), f"{decl.name}Edge", edges, here)
                way = "DESC" if page.backwards else "ASC"
                return f"COALESCE(json_agg({body} ORDER BY {row}._n {way}) FILTER (WHERE {on_page}), '[]')"
            if name == "pageInfo":
                return sub(_sets(nodes), "PageInfo", info, here)
            return f"(SELECT count(*) FROM {source} {row} WHERE {page.every})"

        body = sub(sets, f"{decl.name}Connection", parts, path)
        asked = {nodes[0].name.value for nodes in self.collect(f"{decl.name}Connection", sets).values()}
        if asked.isdisjoint({"edges", "pageInfo"}):
            return f"(SELECT {body})"
        # HAVING makes it one group, also where no aggregate is asked for.
        return (
            f"(SELECT {body} FROM (SELECT {row}.*, row_number() OVER (ORDER BY {page.order}) AS _n "
            f"FROM {source} {row} WHERE {page.condition} ORDER BY {page.order} LIMIT {page.size} + 1) {row} "
            "HAVING true)"
        )


def _sets(nodes: list[FieldNode]) -> list[SelectionSetNode]:
    return [node.selection_set for node in nodes if node.selection_set]
