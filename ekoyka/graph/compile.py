"""From a validated selection to one SQL statement that returns the answer's JSON, as bytes.

Every object is a concatenation of texts: what is known beforehand is literal, each value stands between. A
link to one row is a scalar subquery, a list an aggregate over one, a connection an aggregate over a page
chosen by its keys. PostgreSQL's own JSON functions look up each value's type again for each row, which costs
more than the joins; `benchmarks/` keeps the figures. Names in the SQL come from declarations and from
GraphQL names (letters, digits, underscores); every value is a bound parameter.

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
    GraphQLField,
    GraphQLObjectType,
    GraphQLSchema,
    SelectionSetNode,
    get_argument_values,
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
from ekoyka.graph.selections import Selections, Selector, sets_of
from ekoyka.graph.text import list_text, name_text, object_text, quoted, value_text
from ekoyka.graph.text import marked as marked_text
from ekoyka.graph.values import at_path, ready

_OTHER_WAY = {"ASC": "DESC", "DESC": "ASC"}
_PLACEHOLDER = re.compile(r"\$(\d+)")


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
    condition, made of those, under which an answer is given at all; ``wall`` is another, always true, that must
    be asked before any row is read, and is told which of the values the statement refers to. None for whoever
    has not signed in.
    """

    roles: frozenset[str]
    values: Mapping[str, str]
    wall: Callable[[Callable[[str], str], frozenset[str]], str] | None
    guard: Callable[[Callable[[str], str]], str] | None


@dataclass(frozen=True)
class Site:
    """A field with arguments, and where it stands in the document."""

    definition: GraphQLField
    node: FieldNode


Binder = Callable[["Binding"], Any]


class Binding:
    """The values of one run of a statement; a field's arguments are coerced when the first is asked for."""

    def __init__(
        self,
        actor: Mapping[str, Any],
        values: Mapping[str, Any],
        sites: Sequence[Site],
        variables: VariableValues,
    ) -> None:
        self.actor = actor
        self.values = values
        self._sites = sites
        self._variables = variables
        self._arguments: dict[int, dict[str, Any]] = {}

    def arguments(self, number: int) -> dict[str, Any]:
        """The coerced arguments at a site."""
        found = self._arguments.get(number)
        if found is None:
            site = self._sites[number]
            found = get_argument_values(site.definition, site.node, self._variables)
            self._arguments[number] = found
        return found


@dataclass(frozen=True)
class Statement:
    """One SQL statement and how its parameters are made; its first value is JSON in UTF-8.

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
        binding = Binding(actor, values or {}, self.sites, variables)
        for check in self.checks:
            check(binding)
        return [binder(binding) for binder in self.binders]


@dataclass
class _Names:
    """The placeholders that one field's SQL may refer to."""

    compiler: "Compiler"
    site: int | None = None
    args: Mapping[str, Arg] = field(default_factory=dict)
    decl: TypeDecl | None = None

    def actor(self, name: str) -> str:
        return self.compiler.actor_value(name)

    def arg(self, name: str) -> str:
        assert self.site is not None
        arg = self.args[name]
        return self.compiler.argument((self.site, (camel(arg.part_of or name),)), arg)

    def scope(self, type_name: str, row: str) -> str:
        return self.compiler.scope(TYPES[type_name], row)

    def joined(self, row: str, link: str) -> str:
        assert self.decl is not None
        declared = self.decl.fields[camel(link)]
        assert isinstance(declared, LinkDecl)
        return self.compiler.join(row, declared)

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
        self.variables = variables
        self.select = Selector(schema, fragments, variables)
        self.actor = actor
        self._binders: list[Binder] = []
        self._known: dict[object, str] = {}
        self._sites: list[Site] = []
        self._aliases = 0
        self._joins: dict[str, dict[str, tuple[str, str]]] = {}

    def statement(self, expression: str, *, guarded: bool) -> Statement:
        """The finished statement around the text of JSON."""
        sql = f"convert_to({expression}, 'UTF8')"
        conditions = []
        if guarded and self.actor.guard is not None:
            conditions.append(self.actor.guard(self.actor_value))
        if self.actor.wall is not None:
            asked = frozenset(name for name in self.actor.values if ("actor", name) in self._known)
            conditions.insert(0, self.actor.wall(self.actor_value, asked))
        if conditions:
            # What stands behind THEN is not begun before the conditions hold, the first of them first.
            sql = f"CASE WHEN {' AND '.join(conditions)} THEN {sql} END"
        sql = f"SELECT {sql}"
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
            (at, arg.pg), arg.pg, lambda run: ready(arg, at_path(run.arguments(site), path))
        )

    # Objects

    def _alias(self) -> str:
        self._aliases += 1
        return f"t{self._aliases}"

    def join(self, row: str, link: LinkDecl) -> str:
        """The alias of the row that the link leads to, joined to this one; once, whoever asks."""
        joins = self._joins.setdefault(row, {})
        if link.name not in joins:
            child = self._alias()
            on = link.on(row, child, _Names(self))
            joins[link.name] = (child, f" LEFT JOIN {TYPES[link.target].source} {child} ON {on}")
        return joins[link.name][0]

    def joins(self, row: str) -> str:
        """What FROM holds beside the row, once all that is said about it is compiled."""
        return "".join(join + self.joins(child) for child, join in self._joins.pop(row, {}).values())

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
        parts = [("", name_text(decl.name))] if marked else []
        if decl.marker is not None:
            parts.append(("#", f"({decl.marker(row, _Names(self))})::text"))
        selected = self.select.collect(decl.name, sets)
        for response_key, nodes in selected.items():
            name = nodes[0].name.value
            if name == "__typename":
                parts.append((response_key, name_text(decl.name)))
                continue
            field_decl = decl.fields[name]
            at = (*path, response_key)
            allowed = self._allowed(decl, field_decl, row, at, nodes[0])
            value = self.field(field_decl, graphql_type.fields[name], row, nodes, at, decl)
            if allowed != "true":
                value = f"CASE WHEN {allowed} THEN {value} ELSE 'null' END"
            parts.append((response_key, value))
        text = object_text(parts)
        told = any(nodes[0].name.value == decl.person_by for nodes in selected.values())
        return text if decl.person is None or told else marked_text(decl.person(row, _Names(self)), text)

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
        parent: TypeDecl | None = None,
    ) -> str:
        """The text of one field's JSON; never SQL's NULL."""
        if isinstance(decl, ValueDecl):
            return value_text(decl.sql(row, _Names(self, decl=parent)), definition)
        sets = sets_of(nodes)
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
        if decl.joined:
            child = self.join(row, decl)
            body = self.object(target, child, sets, path)
            seen = every(f"{child}.id IS NOT NULL", "true" if decl.same_scope else self.scope(target, child))
            return f"CASE WHEN {seen} THEN {body} ELSE 'null' END"
        child = self._alias()
        source = decl.source(row, names) if decl.source else target.source
        condition = decl.on(row, child, names)
        if not decl.same_scope:
            condition = every(condition, self.scope(target, child))
        if decl.shape is Shape.ONE:
            body = self.object(target, child, sets, path)
            return f"coalesce((SELECT {body} FROM {source} {child}{self.joins(child)} WHERE {condition}), 'null')"
        if decl.shape is Shape.LIST:
            assert decl.order is not None
            body = list_text(self.object(target, child, sets, path), decl.order(row, child))
            return f"(SELECT {body} FROM {source} {child}{self.joins(child)} WHERE {condition})"
        assert site is not None
        return self._connection(
            target, decl, str(source), child, condition, Site(definition, nodes[0]), site, sets, path
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
            if not target.node or not (self.visible(target) or self.select.names_type(target.name, sets)):
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
                f"WHEN '{target.name}' THEN "
                f"(SELECT {body} FROM {target.source} {child}{self.joins(child)} WHERE {condition})"
            )
        chosen = f"coalesce(CASE {kind} {' '.join(cases)} END, 'null')" if cases else "'null'"
        if not decl.many:
            return chosen
        return (
            f"(SELECT {list_text(chosen, 'ref.place')} "
            f"FROM unnest({type_name}, {key}) WITH ORDINALITY ref (kind, key, place))"
        )

    # Connections

    def _connection(
        self,
        decl: TypeDecl,
        link: LinkDecl,
        source: str,
        row: str,
        condition: str,
        at: Site,
        site: int,
        sets: Sequence[SelectionSetNode],
        path: tuple[str, ...],
    ) -> str:
        order_by = link.default_order or decl.default_order
        page = choose_page(self, decl, order_by, source, row, condition, site, at)
        fields = self.select.collect(f"{decl.name}Connection", sets)
        asked = {nodes[0].name.value for nodes in fields.values()}
        # One row more than the page holds is looked for only where it is asked what lies around.
        on_page = f"{row}._n <= {page.size}"
        whole = "pageInfo" not in asked

        def sub(
            selected: Selections,
            type_name: str,
            render: Callable[[str, list[FieldNode], tuple[str, ...]], str],
            here: tuple[str, ...],
        ) -> str:
            return object_text(
                (
                    key,
                    name_text(type_name)
                    if nodes[0].name.value == "__typename"
                    else render(nodes[0].name.value, nodes, (*here, key)),
                )
                for key, nodes in selected.items()
            )

        def edges(name: str, nodes: list[FieldNode], here: tuple[str, ...]) -> str:
            if name == "cursor":
                return quoted(page.cursor)
            return self.object(decl, row, sets_of(nodes), here)

        def info(name: str, nodes: list[FieldNode], here: tuple[str, ...]) -> str:
            if name in ("hasNextPage", "hasPreviousPage"):
                ahead = (name == "hasNextPage") != page.backwards
                return (
                    f"(count(*) > {page.size})::text" if ahead else ("'true'" if page.resumed else "'false'")
                )
            number = "1" if (name == "startCursor") != page.backwards else f"least({row}._all, {page.size})"
            return quoted(f"max({page.cursor}) FILTER (WHERE {row}._n = {number})")

        def parts(name: str, nodes: list[FieldNode], here: tuple[str, ...]) -> str:
            if name == "edges":
                selected = self.select.collect(f"{decl.name}Edge", sets_of(nodes))
                # Forwards the rows come in this very order, and nothing is sorted again.
                order = ", ".join(
                    f"{row}._{number} {_OTHER_WAY[way] if page.backwards else way}"
                    for number, way in enumerate(page.ways)
                )
                return list_text(
                    sub(selected, f"{decl.name}Edge", edges, here), order, None if whole else on_page
                )
            if name == "pageInfo":
                return sub(self.select.collect("PageInfo", sets_of(nodes)), "PageInfo", info, here)
            count = f"(SELECT count(*) FROM {page.source} {row} WHERE {page.every})::text"
            # To count persons is to look for them, whoever they are.
            return count if decl.person is None else marked_text("NULL", count)

        body = sub(fields, f"{decl.name}Connection", parts, path)
        if asked.isdisjoint({"edges", "pageInfo"}):
            return f"(SELECT {body})"
        keys = ", ".join(f"{key} AS _{number}" for number, key in enumerate(page.keys))
        order = ", ".join(f"{key} {way}" for key, way in zip(page.keys, page.ways, strict=True))
        rows = (
            f"SELECT {row}.*, {keys} FROM {page.source} {row} WHERE {page.condition} "
            f"ORDER BY {order} LIMIT {page.size}"
        )
        if not whole:
            every = ", count(*) OVER () AS _all" if f"{row}._all" in body else ""
            rows = f"SELECT {row}.*, row_number() OVER () AS _n{every} FROM ({rows} + 1) {row}"
        # HAVING makes it one group, also where no aggregate is asked for.
        return f"(SELECT {body} FROM ({rows}) {row}{self.joins(row)} HAVING true)"
