"""Running plans: whole queries and mutations from statements; root fields and payloads for Strawberry's executor."""

import copy
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Self

import orjson
from graphql import ExecutionResult, GraphQLError, GraphQLSyntaxError, OperationType
from strawberry.extensions import SchemaExtension

from ekoyka.graph.compile import ActorShape
from ekoyka.graph.ids import BadInput
from ekoyka.graph.plan import Document, OperationPlan, PlanError, Planner, RootPlan, bad_input


class ActorGone(Exception):
    """The actor is no longer who the token says: blocked, or with other roles since."""


class ReadContext(ABC):
    """What GraphQL resolvers are given: the actor, the operation's plan, a way to run its statements."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.document: Document | None = None
        self.plan: OperationPlan | None = None
        self.compiled = True
        # Whether the request names its operation; where it does not, Strawberry would take the first.
        self.names_operation = True

    @abstractmethod
    def actor_shape(self) -> ActorShape:
        """What of the actor changes a plan."""

    @abstractmethod
    def actor_values(self) -> Mapping[str, Any]:
        """What of the actor is bound when a statement runs."""

    @abstractmethod
    async def fetch_value(self, sql: str, *parameters: Any) -> bytes | None:
        """The statement's value, on a connection for reading."""

    @abstractmethod
    async def admit(self, plan: OperationPlan) -> None:
        """The operation may run, by what it costs. Raises `PlanError`."""

    @abstractmethod
    async def perform(self, root: RootPlan) -> bytes:
        """The mutation is done; the JSON of its payload."""

    def for_operation(self) -> Self:
        """A context of its own for each operation: a socket's operations share what they began with."""
        return copy.copy(self)

    def bind(self, plan: OperationPlan) -> None:
        """The operation's statements have their parameters. Raises `PlanError`, before any SQL."""
        self.plan = plan
        for key, root in plan.roots.items():
            if root.read is not None:
                try:
                    plan.parameters[key] = root.read.bind(self.actor_values(), plan.variables)
                except BadInput as error:
                    raise PlanError([bad_input(error, None, [key])]) from error

    async def read(self, response_key: str) -> bytes:
        """The JSON of a query's root field. Raises `ActorGone`."""
        assert self.plan is not None
        root = self.plan.roots[response_key]
        assert root.read is not None
        value = await self.fetch_value(root.read.sql, *self.plan.parameters[response_key])
        if value is None:
            raise ActorGone
        return value

    async def run_root(self, response_key: str) -> Any:
        """The rows of a query's root field, for the executor to pick from."""
        return orjson.loads(await self.read(response_key))

    async def answer_at_once(
        self, text: str, operation_name: str | None, variables: Mapping[str, Any] | None
    ) -> bytes | None:
        """The data of a query or mutation, from statements' bytes; None for all that Strawberry is to execute.

        Raises `PlanError` before any SQL, and `ActorGone`; a mutation's errors have their field's path.
        """
        try:
            document = self.planner.document(text)
        except GraphQLSyntaxError:
            return None
        if document.errors or not document.is_answered_at_once(operation_name):
            return None
        plan = self.planner.plan(
            document, operation_name, variables, self.actor_shape(), compiled=self.compiled
        )
        if not plan.compiled:
            return None
        self.bind(plan)
        await self.admit(plan)
        return await self.answer(plan)

    async def answer(self, plan: OperationPlan) -> bytes:
        """The whole operation's data, put together from the bytes that PostgreSQL made."""
        parts = []
        for key in plan.order:
            if key in plan.typenames:
                value = f'"{plan.typenames[key]}"'.encode()
            elif plan.operation is OperationType.MUTATION:
                value = await self._performed(plan.roots[key])
            else:
                value = await self.read(key)
            parts.append(b'"%b":%b' % (key.encode(), value))
        return b"{%b}" % b",".join(parts)

    async def _performed(self, root: RootPlan) -> bytes:
        try:
            return await self.perform(root)
        except Exception as error:
            raise GraphQLError(str(error), path=[root.response_key], original_error=error) from error


class PlannedExecution(SchemaExtension):
    """Reads documents from the planner, plans every operation before it runs, answers what is compiled at once
    and leaves the rest to Strawberry.

    A payload's or subscription's plan waits in the context for its resolver.
    """

    def on_operation(self) -> Iterator[None]:
        self.execution_context.context = self.execution_context.context.for_operation()
        yield

    def on_parse(self) -> Iterator[None]:
        execution = self.execution_context
        context: ReadContext = execution.context
        context.document = context.planner.document(execution.query or "")
        execution.graphql_document = context.document.node
        yield

    def on_validate(self) -> Iterator[None]:
        execution = self.execution_context
        context: ReadContext = execution.context
        assert context.document is not None
        execution.pre_execution_errors = list(context.document.errors)
        yield

    async def on_execute(self) -> AsyncIterator[None]:
        execution = self.execution_context
        context: ReadContext = execution.context
        assert context.document is not None
        try:
            plan = context.planner.plan(
                context.document,
                execution.operation_name if context.names_operation else None,
                execution.variables,
                context.actor_shape(),
                compiled=context.compiled,
            )
            context.bind(plan)
            await context.admit(plan)
            if plan.compiled:
                data: Any = orjson.Fragment(await context.answer(plan))
                execution.result = ExecutionResult(data=data, errors=None)
        except PlanError as error:
            if execution.operation_type.name == OperationType.SUBSCRIPTION.name:
                raise error.errors[0] from error
            execution.result = ExecutionResult(data=None, errors=error.errors)
        yield
