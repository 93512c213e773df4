"""The live feed in the graph: which events there are, and what each subscription follows."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import strawberry
from graphql import GraphQLError, GraphQLSyntaxError, OperationType, get_argument_values
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver

from ekoyka import feed
from ekoyka.api.context import Run
from ekoyka.api.enums import BedChange, FeedKind
from ekoyka.api.facilities import bed_counts
from ekoyka.api.permissions import STAFF, staff_of
from ekoyka.api.watching import Question
from ekoyka.graph import declare as graph
from ekoyka.graph.ids import BadInput, decode_as
from ekoyka.graph.plan import PlanError, bad_input
from ekoyka.inpatient.queries import beds_topic

if TYPE_CHECKING:
    from ekoyka.api.facilities import Bed, BedCounts, Dispensary
    from ekoyka.api.scalars import DateTime
    from ekoyka.inpatient.queries import BedStatus

# ``since`` and ``upto``: the cursors between which one event tells of changes; both NULL for a snapshot.
BETWEEN = {"since": "bigint", "upto": "bigint"}
KIND_TEXT = "Whether it is the present state or changes."
PLACE_TEXT = (
    "Its place: pass the last one as `after` when you come back, and nothing is missed or seen twice."
)


@dataclass(frozen=True)
class Told:
    """SQL of what an event tells of, given SQL of its topic and of whether it is about an outbox row ``f``.

    Both are made of the event's row: a type with columns that hold `BETWEEN`.
    """

    topic: Callable[[str], str]
    about: Callable[[str], str]

    def place(self, row: str) -> str:
        """The number of the cursor that the event reaches."""
        return feed.place(self.topic(row), f"{row}.since", f"{row}.upto")

    def cursor(self, row: str, number: str) -> str:
        """A cursor of the topic."""
        return f"encode(convert_to({self.topic(row)} || ' ' || {number}, 'UTF8'), 'base64')"

    def kind(self, row: str) -> str:
        """The event's `FeedKind`."""
        return f"CASE WHEN {row}.since IS NULL THEN 'SNAPSHOT' ELSE 'CHANGE' END"

    def changes(self, row: str, columns: str) -> str:
        """A SELECT of the outbox rows that the event tells of: cursor, its text ``place``, occurred_at, and these."""
        return (
            f"(SELECT f.cursor, {self.cursor(row, 'f.cursor')} AS place, f.occurred_at, {columns} "
            f"FROM {feed.events(self.topic(row), f'{row}.since', f'{row}.upto')} f WHERE {self.about(row)})"
        )

    def marker(self, row: str, names: graph.Names) -> str:
        """What the server needs to know of an event: a JSON list in the order of `watching.Reading`."""
        passed = feed.events(self.topic(row), f"{row}.since", f"{row}.upto")
        return (
            f"'[' || {self.place(row)} || (SELECT ',' || count(*) || ',' || count(*) FILTER (WHERE {self.about(row)}) "
            "|| ',' || coalesce(extract(epoch FROM clock_timestamp() - min(f.occurred_at)), 0) "
            f"FROM {passed} f) || ']'"
        )


# The dispensary's changes, or those of the watched bed.
_BEDS = Told(
    topic=lambda row: f"'beds:' || {row}.dispensary_id",
    about=lambda row: f"({row}.bed_id IS NULL OR (f.payload->>'bed')::bigint = {row}.bed_id)",
)


@graph.type_(description="One committed change of a bed.")
class BedChanged:
    """A change."""

    cursor: str = graph.column("Its place, as that of an event.", name="place")
    change: BedChange = graph.column("What happened.")
    status: BedStatus | None = graph.column(
        "The status that the change led to; null when the bed was no more."
    )
    occurred_at: DateTime = graph.column("When.")
    bed: Bed | None = graph.one("bed_id", "The bed, as it is now; null when it is no more.")


@graph.type_(
    description="An event of the feed of a dispensary's beds: the present state, or a burst of changes.",
    columns={"dispensary_id": "bigint", "bed_id": "bigint", **BETWEEN},
    scope=staff_of(),
    marker=_BEDS.marker,
)
class BedEvent:
    """A snapshot, or all changes since the last event; all of it is read in one moment."""

    kind: FeedKind = graph.expression(lambda row, names: _BEDS.kind(row), KIND_TEXT)
    cursor: str = graph.expression(lambda row, names: _BEDS.cursor(row, _BEDS.place(row)), PLACE_TEXT)
    changes: list[BedChanged] = graph.listing(
        lambda row, child, names: "true",
        "All changes since the last event, in the order of their commits; none for a snapshot.",
        order=lambda row, child: f"{child}.cursor",
        source=lambda row, names: _BEDS.changes(
            row,
            "(f.payload->>'bed')::bigint AS bed_id, f.payload->>'change' AS change, f.payload->>'status' AS status",
        ),
    )
    bed: Bed | None = graph.one(
        "bed_id",
        "The watched bed of `bedChanged`, as it is now; null for a dispensary's feed, or when it is no more.",
    )
    counts: BedCounts = graph.embedded(
        lambda row, names: bed_counts(
            f"{row}.dispensary_id",
            f"(SELECT d.staffed_beds FROM dispensary d WHERE d.id = {row}.dispensary_id)",
        ),
        "The dispensary's beds by status, as they are now.",
    )
    # Whoever is told at all sees it; asked again, its scope would tell each account's subscribers apart.
    dispensary: Dispensary = graph.one(
        "dispensary_id", "The dispensary, with its beds as they are now.", same_scope=True
    )


@dataclass(frozen=True)
class Asked:
    """A subscription about to begin: what it watches, and the cursor after which, or None for a snapshot."""

    question: Question
    after: int | None


@dataclass(frozen=True)
class Followed:
    """The topic of a feed, and the event's values that stay the same as long as it is followed."""

    topic: str
    values: Mapping[str, Any]


_FIELDS: dict[str, StrawberryField] = {}
_FEEDS: dict[str, Callable[[Run, Mapping[str, Any]], Awaitable[Followed]]] = {}


async def asked(run: Run, text: str, name: str | None, variables: Mapping[str, Any] | None) -> Asked | None:
    """What the document subscribes to; None where it is a query or mutation. Raises `PlanError`."""
    try:
        document = run.planner.document(text)
    except GraphQLSyntaxError as error:
        raise PlanError([error]) from error
    if document.errors:
        raise PlanError(document.errors)
    wanted = document.named(name)
    if len(wanted) == 1 and wanted[0].operation is not OperationType.SUBSCRIPTION:
        return None
    plan = run.planner.plan(document, name, variables, run.actor_shape())
    [(key, root)] = plan.roots.items()  # validation sees to it that there is one
    [(event, statement)] = root.payloads.items()
    nothing = dict.fromkeys(graph.TYPES[event].columns)
    try:
        arguments = get_argument_values(root.site.definition, root.site.node, plan.variables)
        followed = await _FEEDS[root.name](run, arguments)
        after = _after(arguments.get("after"), followed.topic)
        actor = run.actor_values()
        statement.bind(actor, plan.variables, nothing)
    except BadInput as error:
        raise PlanError([bad_input(error, root.site.node, [key])]) from error
    except GraphQLError as error:
        raise PlanError([error]) from error
    await run.admit(plan)

    def bind(since: int | None, upto: int | None) -> list[Any]:
        return statement.bind(
            actor, plan.variables, {**nothing, **followed.values, "since": since, "upto": upto}
        )

    return Asked(Question(followed.topic, root.name, key, statement.sql, bind), after)


def _after(value: str | None, topic: str) -> int | None:
    if value is None:
        return None
    try:
        found, _, cursor = base64.b64decode(value, validate=True).decode("ascii").partition(" ")
        if found == topic and cursor.isdigit() and len(cursor) < 19:
            return int(cursor)
    except ValueError:  # of base64 and of ASCII alike
        pass
    raise BadInput("`after` is the `cursor` of an event of this very feed.")


async def _over_http(root: None, info: strawberry.Info, **_: Any) -> AsyncIterator[None]:
    """What Strawberry's own executor would run: nothing, as `sockets` takes every subscription before it."""
    raise GraphQLError("Subscriptions are served over the WebSocket (graphql-transport-ws).")
    yield


def subscription(
    name: str,
    description: str,
    arguments: tuple[tuple[str, str, str], ...],
    *,
    event: str,
    roles: frozenset[str],
) -> Callable[[Callable[[Run, Mapping[str, Any]], Awaitable[Followed]]], None]:
    """The function says what the subscription of this name follows; ``event`` is the type of what it is told."""

    def declare(follow: Callable[[Run, Mapping[str, Any]], Awaitable[Followed]]) -> None:
        field = StrawberryField(
            python_name=name,
            graphql_name=name,
            description=description,
            type_annotation=graph.annotation(event),
            base_resolver=StrawberryResolver(_over_http),
            is_subscription=True,
        )
        field.arguments = [graph.argument(*item) for item in arguments]
        graph.ROOT_ROLES[f"Subscription.{name}"] = roles
        _FIELDS[name] = field
        _FEEDS[name] = follow

    return declare


AFTER = (
    "after",
    "str | None",
    "The `cursor` of the last event seen; without it the present state comes first.",
)
HOW = (
    " Changes that come quickly one after another are told of together, in one event. A client that reads too "
    "slowly is dropped with 4413 and may come back with its last cursor."
)


@subscription(
    "bedAvailability",
    "A dispensary's beds: the present state, then every committed change, from any process." + HOW,
    (("dispensary_id", "ID", "Which dispensary."), AFTER),
    event="BedEvent",
    roles=STAFF,
)
async def _bed_availability(run: Run, arguments: Mapping[str, Any]) -> Followed:
    key = decode_as("Dispensary", arguments["dispensaryId"])
    return Followed(beds_topic(key), {"dispensary_id": key})


@subscription(
    "bedChanged",
    "One bed: its present state, then every committed change." + HOW,
    (("bed_id", "ID", "Which bed."), AFTER),
    event="BedEvent",
    roles=STAFF,
)
async def _bed_changed(run: Run, arguments: Mapping[str, Any]) -> Followed:
    key = decode_as("Bed", arguments["bedId"])
    rows = await run.database.fetch("SELECT dispensary_id FROM bed WHERE id = $1", key)
    # A bed that is not there and one that is not the actor's are the same answer.
    place = rows[0]["dispensary_id"] if rows else 0
    return Followed(beds_topic(place), {"dispensary_id": place, "bed_id": key})


def subscription_type() -> type:
    """The schema's subscription type."""
    return graph.object_of_fields("Subscription", "Watching, over graphql-transport-ws.", _FIELDS)
