"""The live feed in the graph: each event is read by the same path as a query, and authorised when it is sent."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import strawberry
from graphql import GraphQLError
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver

from ekoyka.api.context import OutOfSight, Run
from ekoyka.api.enums import BedChange, FeedKind
from ekoyka.api.facilities import bed_counts
from ekoyka.api.permissions import STAFF, staff_of
from ekoyka.feed import Event, lag_s
from ekoyka.graph import declare as graph
from ekoyka.graph.ids import BadInput, decode_as
from ekoyka.inpatient.queries import beds_topic
from ekoyka.observability import FEED_LAG, SUBSCRIPTIONS

if TYPE_CHECKING:
    from ekoyka.api.facilities import Bed, BedCounts, Dispensary
    from ekoyka.api.scalars import DateTime
    from ekoyka.inpatient.queries import BedStatus


_COLUMNS = {
    "kind": "text",
    "dispensary_id": "bigint",
    "cursor": "bigint",
    "bed_id": "bigint",
    "change": "text",
    "status": "text",
    "occurred_at": "timestamptz",
}
# A snapshot's cursor is read in the same statement as its state, so that nothing is missed between the two.
_CURSOR = "coalesce({row}.cursor, (SELECT last_cursor FROM feed_topic WHERE topic = 'beds:' || {row}.dispensary_id), 0)"


@graph.type_(
    description="An event of the feed of a dispensary's beds.",
    columns=_COLUMNS,
    scope=staff_of(),
    marker=lambda row, names: _CURSOR.format(row=row),
)
class BedEvent:
    """A snapshot or a change."""

    kind: FeedKind = graph.column("Whether it is the present state or one change.")
    cursor: str = graph.expression(
        lambda row, names: (
            f"encode(convert_to('beds:' || {row}.dispensary_id || ' ' || {_CURSOR.format(row=row)}, 'UTF8'), 'base64')"
        ),
        "Its place: pass the last one as `after` when you come back, and nothing is missed or seen twice.",
    )
    change: BedChange | None = graph.column("What happened; null for a snapshot.")
    status: BedStatus | None = graph.column("The status that the change led to; null for a snapshot.")
    occurred_at: DateTime | None = graph.column("When; null for a snapshot.")
    bed: Bed | None = graph.one(
        "bed_id", "The bed, as it is now; null for a dispensary's snapshot, or when it is no more."
    )
    counts: BedCounts = graph.embedded(
        lambda row, names: bed_counts(
            f"{row}.dispensary_id",
            f"(SELECT d.staffed_beds FROM dispensary d WHERE d.id = {row}.dispensary_id)",
        ),
        "The dispensary's beds by status, as they are now.",
    )
    dispensary: Dispensary = graph.one("dispensary_id", "The dispensary, with its beds as they are now.")


_FIELDS: dict[str, StrawberryField] = {}


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


async def _follow(
    run: Run, response_key: str, dispensary_id: int, bed_id: int | None, after: str | None
) -> AsyncGenerator[dict[str, Any], None]:
    topic = beds_topic(dispensary_id)
    place = _after(after, topic)
    snapshot = {"kind": FeedKind.SNAPSHOT.value, "dispensary_id": dispensary_id, "bed_id": bed_id}

    async def read(values: dict[str, Any]) -> dict[str, Any]:
        try:
            return await run.payload(response_key, "BedEvent", values)
        except OutOfSight:
            raise GraphQLError("There is no such record.", extensions={"code": "NOT_FOUND"}) from None

    if place is not None:
        # Nothing may be told about a dispensary that is not the actor's, not even that nothing has happened.
        await read(snapshot)
    SUBSCRIPTIONS.inc()
    try:
        async with aclosing(run.services.feed.follow(topic, place)) as events:
            item = await anext(events)
            while True:
                if isinstance(item, Event):
                    if bed_id in (None, item.payload["bed"]):
                        FEED_LAG.observe(max(0.0, lag_s(item)))
                        yield await read(
                            {
                                "kind": FeedKind.CHANGE.value,
                                "dispensary_id": dispensary_id,
                                "cursor": item.cursor,
                                "bed_id": item.payload["bed"],
                                "change": item.payload["change"],
                                "status": item.payload["status"],
                                "occurred_at": item.occurred_at,
                            }
                        )
                    item = await anext(events)
                else:
                    state = await read(snapshot)
                    yield state
                    item = await events.asend(int(state["#"]))
    finally:
        SUBSCRIPTIONS.dec()


def _subscription(
    name: str, description: str, arguments: tuple[tuple[str, str, str], ...]
) -> Callable[[Callable[..., AsyncGenerator[dict[str, Any], None]]], None]:
    def declare(resolve: Callable[..., AsyncGenerator[dict[str, Any], None]]) -> None:
        field = StrawberryField(
            python_name=name,
            graphql_name=name,
            description=description,
            type_annotation=graph.annotation("BedEvent"),
            base_resolver=StrawberryResolver(resolve),
            is_subscription=True,
        )
        field.arguments = [graph.argument(*item) for item in arguments]
        graph.ROOT_ROLES[f"Subscription.{name}"] = STAFF
        _FIELDS[name] = field

    return declare


_AFTER = (
    "after",
    "str | None",
    "The `cursor` of the last event seen; without it the present state comes first.",
)


@_subscription(
    "bedAvailability",
    "A dispensary's beds: the present state, then one event for every committed change, from any process.",
    (("dispensary_id", "ID", "Which dispensary."), _AFTER),
)
async def _bed_availability(
    root: None, info: strawberry.Info, dispensary_id: str, after: str | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    run: Run = info.context
    key = decode_as("Dispensary", dispensary_id)
    async with aclosing(_follow(run, str(info.path.key), key, None, after)) as events:
        async for event in events:
            yield event


@_subscription(
    "bedChanged",
    "One bed: its present state, then one event for every committed change.",
    (("bed_id", "ID", "Which bed."), _AFTER),
)
async def _bed_changed(
    root: None, info: strawberry.Info, bed_id: str, after: str | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    run: Run = info.context
    key = decode_as("Bed", bed_id)
    rows = await run.database.fetch("SELECT dispensary_id FROM bed WHERE id = $1", key)
    # A bed that is not there and one that is not the actor's are the same answer.
    dispensary_id = rows[0]["dispensary_id"] if rows else 0
    async with aclosing(_follow(run, str(info.path.key), dispensary_id, key, after)) as events:
        async for event in events:
            yield event


def subscription_type() -> type:
    """The schema's subscription type."""
    return graph.object_of_fields("Subscription", "Watching, over graphql-transport-ws.", _FIELDS)
