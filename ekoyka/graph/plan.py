"""Plans: what one operation needs from the database, kept by document and by what changes the SQL.

A plan depends on the document, the operation's name, the kinds of the actor's roles, and the shape of the
variables: which are given, which inputs they fill, and the values that choose SQL rather than fill it
(enums, and booleans, which may steer `@skip`). Everything else is bound when a statement runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, partial
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLObjectType,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    get_named_type,
    get_variable_values,
    is_abstract_type,
    parse,
    validate,
)
from graphql.execution.values import VariableValues

from ekoyka.cache import Cache
from ekoyka.graph.compile import ActorShape, Compiler, FieldForbidden, Site, Statement
from ekoyka.graph.ids import BadInput
from ekoyka.graph.limits import MAX_COST, MAX_TOKENS, Measure, Meter, too_much
from ekoyka.graph.model import ANONYMOUS, ROOT_ROLES, TYPES, TypeDecl
from ekoyka.graph.selections import Selector, sets_of

_INTROSPECTION = frozenset({"__schema", "__type"})
KEPT = 1000
# Of the variables: whoever sends thousands of bad values is not told of each.
MOST_ERRORS = 5
# Longer documents are read anew each time: a thousand of them would fill the memory.
LONGEST_KEPT = 20_000


@dataclass(frozen=True)
class Document:
    """A document that has been parsed, and what validation says of it."""

    text: str
    node: DocumentNode
    errors: list[GraphQLError]
    measures: list[tuple[OperationDefinitionNode, Measure]]

    @cached_property
    def operations(self) -> list[OperationDefinitionNode]:
        """Its operations, in order."""
        return [item for item in self.node.definitions if isinstance(item, OperationDefinitionNode)]

    def cost(self, operation: OperationDefinitionNode, variables: VariableValues) -> int:
        """How many objects the operation's answer may hold. Raises `PlanError` where those are too many."""
        measure = next(measure for item, measure in self.measures if item is operation)
        cost = measure.price(variables.coerced)
        if cost > MAX_COST:
            raise PlanError([too_much("cost", cost, MAX_COST)])
        return cost

    def named(self, name: str | None) -> list[OperationDefinitionNode]:
        """The operations of this name; all of them without one."""
        return [item for item in self.operations if name is None or (item.name and item.name.value == name)]

    def is_answered_at_once(self, name: str | None) -> bool:
        """Whether one operation is meant, and is a query or a mutation."""
        wanted = self.named(name)
        return len(wanted) == 1 and wanted[0].operation is not OperationType.SUBSCRIPTION


@dataclass
class RootPlan:
    """What one root field needs. A query's is one statement; a mutation's or subscription's payload has one
    for each type that may come out, over a row that the field hands over when it runs."""

    response_key: str
    name: str
    site: Site
    read: Statement | None = None
    payloads: dict[str, Statement] = field(default_factory=dict)


@dataclass
class OperationPlan:
    """What one operation needs; ``compiled`` when its answer is put together from statements' bytes."""

    operation: OperationType
    variables: VariableValues
    roots: dict[str, RootPlan]
    typenames: dict[str, str]
    order: tuple[str, ...]
    compiled: bool
    cost: int = 0
    parameters: dict[str, list[Any]] = field(default_factory=dict)


class PlanError(Exception):
    """The operation ends before any SQL, with these errors."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        super().__init__("not planned")
        self.errors = errors


def shape(value: Any) -> Any:
    """What of a variable's value can change the SQL."""
    if isinstance(value, dict):
        return tuple(sorted((key, shape(item)) for key, item in value.items()))
    if isinstance(value, list):
        shapes = tuple(shape(item) for item in value)
        return shapes if any(isinstance(item, tuple) for item in shapes) else list
    if value is None or isinstance(value, bool | Enum):
        return value
    return str if isinstance(value, str) else type(value)


class Planner:
    """The plans of one schema.

    With ``introspectors``, introspection is for holders of these roles alone, and errors suggest no names.
    """

    def __init__(self, schema: GraphQLSchema, *, introspectors: frozenset[str] | None = None) -> None:
        self.schema = schema
        self.introspectors = introspectors
        self.documents: Cache[str, Document] = Cache(KEPT)
        self.plans: Cache[object, OperationPlan] = Cache(KEPT)

    def document(self, text: str) -> Document:
        """The document, parsed, measured and validated once. Raises `GraphQLSyntaxError`."""
        known = self.documents.get(text)
        if known is None:
            node = parse(text, max_tokens=MAX_TOKENS)
            measures: list[tuple[OperationDefinitionNode, Measure]] = []
            try:
                measures = list(Meter(self.schema, node).operations())
                errors = [_meant(error) for error in self._validated(node)]
            except GraphQLError as error:
                errors = [error]
            known = Document(text, node, errors, measures)
            if len(text) <= LONGEST_KEPT:
                self.documents.put(text, known)
        return known

    def _validated(self, node: DocumentNode) -> list[GraphQLError]:
        return validate(self.schema, node, hide_suggestions=self.introspectors is not None)

    def plan(
        self,
        document: Document,
        operation_name: str | None,
        raw_variables: Mapping[str, Any] | None,
        actor: ActorShape,
        *,
        compiled: bool = True,
    ) -> OperationPlan:
        """The operation's plan, with this request's variables; not ``compiled``: for Strawberry's executor.

        Raises `PlanError`.
        """
        operation = _operation(document, operation_name)
        variables = get_variable_values(
            self.schema,
            operation.variable_definitions or (),
            dict(raw_variables or {}),
            max_errors=MOST_ERRORS,
            hide_suggestions=self.introspectors is not None,
        )
        if isinstance(variables, list):
            raise PlanError([coded(error, "BAD_USER_INPUT") for error in variables])
        cost = document.cost(operation, variables)
        key = (document.text, operation_name, actor.roles, compiled, shape(variables.coerced))
        known = self.plans.get(key)
        if known is None:
            known = self._make(document.node, operation, variables, actor, compiled)
            if len(document.text) <= LONGEST_KEPT:
                self.plans.put(key, known)
        return OperationPlan(
            known.operation, variables, known.roots, known.typenames, known.order, known.compiled, cost
        )

    def _make(
        self,
        document: DocumentNode,
        operation: OperationDefinitionNode,
        variables: VariableValues,
        actor: ActorShape,
        compiled: bool,
    ) -> OperationPlan:
        fragments = {
            item.name.value: item for item in document.definitions if isinstance(item, FragmentDefinitionNode)
        }
        root_type = self.schema.get_root_type(operation.operation)
        assert root_type is not None
        select = Selector(self.schema, fragments, variables)
        selections = select.collect(root_type.name, [operation.selection_set])
        roots: dict[str, RootPlan] = {}
        typenames: dict[str, str] = {}
        compiled &= operation.operation is not OperationType.SUBSCRIPTION
        # Introspection is Strawberry's.
        introspects = not {nodes[0].name.value for nodes in selections.values()}.isdisjoint(_INTROSPECTION)
        if introspects and self.introspectors is not None and actor.roles.isdisjoint(self.introspectors):
            code = "UNAUTHENTICATED" if ANONYMOUS in actor.roles else "FORBIDDEN"
            raise PlanError([GraphQLError("Introspection is for staff.", extensions={"code": code})])
        compiled &= not introspects
        for response_key, nodes in selections.items():
            name = nodes[0].name.value
            if name == "__typename":
                typenames[response_key] = root_type.name
            elif not name.startswith("__"):
                compiler = partial(Compiler, self.schema, fragments, variables, actor, marked=not compiled)
                roots[response_key] = self._root(root_type, response_key, nodes, actor, compiler)
        return OperationPlan(operation.operation, variables, roots, typenames, tuple(selections), compiled)

    def _root(
        self,
        root_type: GraphQLObjectType,
        response_key: str,
        nodes: list[FieldNode],
        actor: ActorShape,
        new_compiler: Callable[[], Compiler],
    ) -> RootPlan:
        name = nodes[0].name.value
        definition = root_type.fields[name]
        root = RootPlan(response_key, name, Site(definition, nodes[0]))
        declared = TYPES.get(root_type.name)
        permitted = declared.fields[name].roles if declared else ROOT_ROLES[f"{root_type.name}.{name}"]
        try:
            if permitted is None or actor.roles.isdisjoint(permitted):
                raise FieldForbidden((response_key,), nodes[0])
            if declared is not None:
                compiler = new_compiler()
                value = compiler.field(declared.fields[name], definition, "", nodes, (response_key,))
                root.read = compiler.statement(value, guarded=True)
                return root
            sets = sets_of(nodes)
            named = get_named_type(definition.type)
            for decl in self._possible(named):
                compiler = new_compiler()
                # A mutation confirms its actor when it begins; a subscription's subscribers, with every event.
                root.payloads[decl.name] = compiler.statement(
                    payload(compiler, decl, sets, (response_key,)), guarded=False
                )
        except FieldForbidden as error:
            raise PlanError(
                [
                    GraphQLError(
                        "Sign in first." if ANONYMOUS in actor.roles else "Your role may not use this field.",
                        error.node,
                        path=list(error.path),
                        extensions={"code": "UNAUTHENTICATED" if ANONYMOUS in actor.roles else "FORBIDDEN"},
                    )
                ]
            ) from error
        except BadInput as error:
            raise PlanError([bad_input(error, nodes[0], [response_key])]) from error
        return root

    def _possible(self, named: Any) -> list[TypeDecl]:
        if is_abstract_type(named):
            return [TYPES[item.name] for item in self.schema.get_possible_types(named) if item.name in TYPES]
        return [TYPES[named.name]] if named.name in TYPES else []


def payload(compiler: Compiler, decl: TypeDecl, sets: Any, path: tuple[str, ...]) -> str:
    """The JSON of a row handed over by its key, or of values handed over by name."""
    if decl.node:
        key = compiler.handed_over("key", "bigint")
        row = "p"
        body = compiler.object(decl, row, sets, path)
        return f"(SELECT {body} FROM {decl.source} {row}{compiler.joins(row)} WHERE {row}.id = {key})"
    columns = ", ".join(f"{compiler.handed_over(name, pg)} AS {name}" for name, pg in decl.columns.items())
    body, scope = compiler.object(decl, "p", sets, path), compiler.scope(decl, "p")
    return f"coalesce((SELECT {body} FROM (SELECT {columns}) p{compiler.joins('p')} WHERE {scope}), 'null')"


def _operation(document: Document, name: str | None) -> OperationDefinitionNode:
    wanted = document.named(name)
    if len(wanted) == 1:
        return wanted[0]
    message = (
        "The document holds several operations: say which one with `operationName`."
        if name is None
        else "The document holds no operation of this `operationName`."
    )
    raise PlanError([GraphQLError(message, extensions={"code": "BAD_USER_INPUT"})])


def _meant(error: GraphQLError) -> GraphQLError:
    """The error as validation's own, also where a literal was more than Python takes (5,000 digits)."""
    if error.original_error is None or isinstance(error.original_error, GraphQLError):
        return error
    return GraphQLError("This value is not one of its type.", error.nodes)


def coded(error: GraphQLError, code: str) -> GraphQLError:
    """The error with a code for clients, unless it has one."""
    error.extensions = {"code": code, **(error.extensions or {})}
    return error


def bad_input(error: BadInput, node: FieldNode | None, path: list[str | int]) -> GraphQLError:
    """The GraphQL error of an argument that cannot be meant."""
    return GraphQLError(str(error), node, path=path, extensions={"code": "BAD_USER_INPUT"})
