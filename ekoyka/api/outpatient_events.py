"""The outpatient clinic's feeds: a doctor's free slots, one's own appointments, one's own notifications."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ekoyka.api.context import Run
from ekoyka.api.enums import AppointmentChange, FeedKind, SlotChange
from ekoyka.api.permissions import NOTIFICATIONS, SIGNED_IN, everywhere
from ekoyka.api.subscriptions import (
    AFTER,
    BETWEEN,
    HOW,
    KIND_TEXT,
    PLACE_TEXT,
    Followed,
    Told,
    subscription,
)
from ekoyka.graph import declare as graph
from ekoyka.graph.ids import decode_as
from ekoyka.identity.tables import Role
from ekoyka.outpatient.queries import PERSON, SLOTS, is_free, person_topic, slots_topic

if TYPE_CHECKING:
    from ekoyka.api.outpatient import Appointment, Notification, Slot
    from ekoyka.api.scalars import DateTime

_PERSON_COLUMNS = {"account_id": "bigint", **BETWEEN}

_FREE = Told(topic=lambda row: f"'{SLOTS}:' || {row}.doctor_id", about=lambda row: "true")
_APPOINTMENTS = Told(
    topic=lambda row: f"'{PERSON}:' || {row}.account_id",
    about=lambda row: "f.payload->>'appointment' IS NOT NULL",
)
_NOTIFICATIONS = Told(
    topic=lambda row: f"'{PERSON}:' || {row}.account_id",
    about=lambda row: "f.payload->>'notification' IS NOT NULL",
)


@graph.type_(description="One committed change of a doctor's slots.")
class SlotChanged:
    """A change."""

    cursor: str = graph.column("Its place, as that of an event.", name="place")
    change: SlotChange = graph.column("What happened.")
    occurred_at: DateTime = graph.column("When.")
    slot: Slot | None = graph.one(
        "slot_id",
        "The slot, where the actor may see it now; null where many have changed, or it is not free.",
    )


# Its scope asks nothing of the actor, so that all patients who watch a doctor share one reading.
@graph.type_(
    description="An event of the feed of a doctor's free slots: the present state, or a burst of changes.",
    columns={"doctor_id": "bigint", **BETWEEN},
    scope={Role.USER: everywhere},
    marker=_FREE.marker,
)
class SlotEvent:
    """A snapshot, or all changes since the last event."""

    kind: FeedKind = graph.expression(lambda row, names: _FREE.kind(row), KIND_TEXT)
    cursor: str = graph.expression(lambda row, names: _FREE.cursor(row, _FREE.place(row)), PLACE_TEXT)
    changes: list[SlotChanged] = graph.listing(
        lambda row, child, names: "true",
        "All changes since the last event, in the order of their commits; none for a snapshot.",
        order=lambda row, child: f"{child}.cursor",
        source=lambda row, names: _FREE.changes(
            row, "(f.payload->>'slot')::bigint AS slot_id, f.payload->>'change' AS change"
        ),
    )
    free_slots: graph.Connection[Slot] = graph.many(
        lambda row, child, names: f"{child}.doctor_id = {row}.doctor_id AND {is_free(child)}",
        "The doctor's free slots as they are now, the earliest first.",
    )


@graph.type_(description="One committed change of an appointment.")
class AppointmentChanged:
    """A change."""

    cursor: str = graph.column("Its place, as that of an event.", name="place")
    change: AppointmentChange = graph.column("What happened.")
    occurred_at: DateTime = graph.column("When.")
    appointment: Appointment | None = graph.one("appointment_id", "The appointment as it is now.")


@graph.type_(
    description="An event of the feed of one's own appointments, as a patient or a doctor.",
    columns=_PERSON_COLUMNS,
    scope=NOTIFICATIONS,
    marker=_APPOINTMENTS.marker,
)
class AppointmentEvent:
    """A snapshot, or all changes since the last event."""

    kind: FeedKind = graph.expression(lambda row, names: _APPOINTMENTS.kind(row), KIND_TEXT)
    cursor: str = graph.expression(
        lambda row, names: _APPOINTMENTS.cursor(row, _APPOINTMENTS.place(row)), PLACE_TEXT
    )
    changes: list[AppointmentChanged] = graph.listing(
        lambda row, child, names: "true",
        "All changes since the last event, in the order of their commits; none for a snapshot.",
        order=lambda row, child: f"{child}.cursor",
        source=lambda row, names: _APPOINTMENTS.changes(
            row, "(f.payload->>'appointment')::bigint AS appointment_id, f.payload->>'change' AS change"
        ),
    )
    appointments: graph.Connection[Appointment] = graph.many(
        lambda row, child, names: (
            f"({child}.doctor_id = {row}.account_id OR {child}.patient_id = ANY(ARRAY(SELECT own.id FROM patient own "
            f"WHERE own.account_id = {row}.account_id)))"
        ),
        "One's own appointments as they are now: with patients, as a doctor, and as a patient.",
    )


@graph.type_(description="A notification that is new, or was read.")
class NotificationChanged:
    """A change."""

    cursor: str = graph.column("Its place, as that of an event.", name="place")
    occurred_at: DateTime = graph.column("When.")
    notification: Notification | None = graph.one("notification_id", "The notification as it is now.")


@graph.type_(
    description="An event of the feed of one's own notifications.",
    columns=_PERSON_COLUMNS,
    scope=NOTIFICATIONS,
    marker=_NOTIFICATIONS.marker,
)
class NotificationEvent:
    """A snapshot, or all that is new since the last event."""

    kind: FeedKind = graph.expression(lambda row, names: _NOTIFICATIONS.kind(row), KIND_TEXT)
    cursor: str = graph.expression(
        lambda row, names: _NOTIFICATIONS.cursor(row, _NOTIFICATIONS.place(row)), PLACE_TEXT
    )
    changes: list[NotificationChanged] = graph.listing(
        lambda row, child, names: "true",
        "What is new or was read since the last event, in order; none for a snapshot.",
        order=lambda row, child: f"{child}.cursor",
        source=lambda row, names: _NOTIFICATIONS.changes(
            row, "(f.payload->>'notification')::bigint AS notification_id"
        ),
    )
    unread_count: int = graph.expression(
        lambda row, names: (
            f"(SELECT count(*) FROM notification n WHERE n.account_id = {row}.account_id AND n.read_at IS NULL)"
        ),
        "How many are not read.",
    )
    notifications: graph.Connection[Notification] = graph.many(
        lambda row, child, names: f"{child}.account_id = {row}.account_id",
        "One's own notifications as they are now, latest first.",
    )


@subscription(
    "freeSlots",
    "A doctor's free slots: those there are, then every committed change, from any process." + HOW,
    (("doctor_id", "ID", "Which doctor, by their account's id."), AFTER),
    event="SlotEvent",
    roles=SIGNED_IN,
)
async def _free_slots(run: Run, arguments: Mapping[str, Any]) -> Followed:
    key = decode_as("Account", arguments["doctorId"])
    return Followed(slots_topic(key), {"doctor_id": key})


@subscription(
    "myAppointments",
    "One's own appointments, as a patient or a doctor: those there are, then every committed change." + HOW,
    (AFTER,),
    event="AppointmentEvent",
    roles=SIGNED_IN,
)
async def _my_appointments(run: Run, arguments: Mapping[str, Any]) -> Followed:
    key = run.known_actor.account_id
    return Followed(person_topic(key), {"account_id": key})


@subscription(
    "myNotifications",
    "One's own notifications: those there are, then each that is new or was read." + HOW,
    (AFTER,),
    event="NotificationEvent",
    roles=SIGNED_IN,
)
async def _my_notifications(run: Run, arguments: Mapping[str, Any]) -> Followed:
    key = run.known_actor.account_id
    return Followed(person_topic(key), {"account_id": key})
