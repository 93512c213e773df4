"""The schema, put together from every declaration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import strawberry
from graphql import lexicographic_sort_schema, print_schema
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext

# Each import declares its part of the graph.
from ekoyka.api import (
    access,
    calendars,
    certificates,
    facilities,
    facility_mutations,
    identity,
    identity_mutations,
    inpatient,
    inpatient_mutations,
    outpatient,
    outpatient_events,
    outpatient_mutations,
    outpatient_refusals,
    outpatient_statistics,
    refusals,
    session_mutations,
    timetable_mutations,
    timetables,
)
from ekoyka.api.mutations import close_codes, mutation_type
from ekoyka.api.permissions import SIGNED_IN
from ekoyka.api.scalars import SCALARS
from ekoyka.api.sockets import PresentedEvents
from ekoyka.api.subscriptions import subscription_type
from ekoyka.graph import declare as graph
from ekoyka.graph.execution import PlannedExecution
from ekoyka.graph.ids import decode

if TYPE_CHECKING:
    from graphql import GraphQLError

    Node = Any

# Modules whose import is their use.
DECLARATIONS = (
    facility_mutations,
    identity_mutations,
    inpatient_mutations,
    outpatient_events,
    outpatient_mutations,
    outpatient_refusals,
    refusals,
    session_mutations,
    timetable_mutations,
)


@graph.query
class Query(
    facilities.Queries,
    inpatient.Queries,
    identity.Queries,
    certificates.Queries,
    access.Queries,
    outpatient.Queries,
    timetables.Queries,
    outpatient_statistics.Queries,
    calendars.Queries,
):
    """The query type."""

    node: Node | None = graph.any_node(
        lambda row, names: (names.arg("kind"), names.arg("id")),
        "Any row by its global id; null where there is none that the actor may see.",
        args={
            "id": graph.Arg(
                type="ID", pg="bigint", description="Its id.", decode=lambda value: decode(value)[1]
            ),
            "kind": graph.Arg(
                type="ID", pg="text", description="", decode=lambda value: decode(value)[0], part_of="id"
            ),
        },
        roles=SIGNED_IN,
    )
    nodes: list[Node | None] = graph.any_node(
        lambda row, names: (names.arg("kinds"), names.arg("ids")),
        "Rows by their global ids, in that order; null where there is none that the actor may see.",
        many=True,
        args={
            "ids": graph.Arg(
                type="list[ID]",
                pg="bigint[]",
                description="Their ids.",
                decode=lambda value: decode(value)[1],
            ),
            "kinds": graph.Arg(
                type="list[ID]",
                pg="text[]",
                description="",
                decode=lambda value: decode(value)[0],
                part_of="ids",
            ),
        },
        roles=SIGNED_IN,
    )


class Schema(strawberry.Schema):
    """Strawberry's schema, silent about documents: its log would hold their literals."""

    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Errors are logged where they are shown, without the document."""


def build_schema() -> strawberry.Schema:
    """The schema of this server; build it once a process."""
    close_codes()
    mutation = mutation_type()
    subscription = subscription_type()
    graph.check()
    return Schema(
        query=graph.NAMESPACE["Query"],
        mutation=mutation,
        subscription=subscription,
        types=[graph.NAMESPACE[name] for name, decl in graph.TYPES.items() if decl.node],
        config=StrawberryConfig(scalar_map=SCALARS),
        extensions=[
            PlannedExecution,
            PresentedEvents,
        ],
    )


def sdl(schema: strawberry.Schema) -> str:
    """The schema in SDL, sorted: the contract that is kept in schema.graphql."""
    return print_schema(lexicographic_sort_schema(schema._schema)) + "\n"
