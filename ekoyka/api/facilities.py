"""Dispensaries, rooms and beds in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ekoyka.api.enums import BedStatus, RoomSex, ServiceState
from ekoyka.api.permissions import CLINICAL, DISPENSARIES, STAFF, staff_of
from ekoyka.columns import contains
from ekoyka.graph import declare as graph
from ekoyka.inpatient.queries import bed_status, is_reserved, status_of

if TYPE_CHECKING:
    from ekoyka.api.identity import Practitioner
    from ekoyka.api.inpatient import BedAssignment, Reservation, Stay
    from ekoyka.api.scalars import DateTime, Phone, TimeZone


ARCHIVED = graph.Filter(
    type="bool | None",
    pg="boolean",
    description="Only archived ones; without it, only those that are not.",
    sql=lambda row, value: f"({row}.archived_at IS NOT NULL) = {value}",
    absent=lambda row: f"{row}.archived_at IS NULL",
)


@graph.type_(
    description="How many beds there are, by status; archived ones are not counted.",
)
class BedCounts:
    """Counts by status."""

    total: int = graph.column("All beds.")
    free: int = graph.column("Beds that nobody lies in and that can be used.")
    available: int = graph.column(
        "Free beds that there is staff for: never more than the staffed number leaves beside the occupied."
    )
    occupied: int = graph.column("Beds in which somebody lies.")
    reserved: int = graph.column("Beds kept for somebody.")
    cleaning: int = graph.column("Beds being cleaned.")
    contaminated: int = graph.column("Contaminated beds.")
    isolated: int = graph.column("Beds set apart for isolation.")
    closed: int = graph.column("Closed beds.")


def bed_counts(dispensary_id: str, staffed: str) -> str:
    """A SELECT of the counts of a dispensary's beds, given SQL of its key and of its staffed number.

    Two indexes in the order of beds answer it, so that it costs the same however many dispensaries there are.
    """
    status = status_of("a.bed_id IS NOT NULL", "r.bed_id IS NOT NULL", "b.service_state")
    counts = ", ".join(
        f"count(*) FILTER (WHERE ({status}) = '{member}') AS {member.value.lower()}" for member in BedStatus
    )
    return f"""(
        SELECT c.*, greatest(0, least(c.free, coalesce({staffed} - c.occupied, c.free))) AS available
        FROM (
            SELECT count(*) AS total, {counts}
            FROM bed b
            LEFT JOIN bed_assignment a
                ON a.bed_id = b.id AND a.dispensary_id = {dispensary_id} AND a.ended_at IS NULL
            LEFT JOIN reservation r ON r.bed_id = b.id AND r.dispensary_id = {dispensary_id}
                AND r.ended_at IS NULL AND r.until > now()
            WHERE b.dispensary_id = {dispensary_id} AND b.archived_at IS NULL
        ) c
    )"""


@graph.type_(
    table="dispensary",
    node=True,
    scope=DISPENSARIES,
    description="A narcology dispensary (нарко-диспансер).",
    where={
        "name": graph.Filter(
            type="str | None",
            pg="text",
            description="Part of the name, in any letter case, ё as е.",
            sql=lambda row, value: contains(f"{row}.name", value),
        ),
        "archived": ARCHIVED,
    },
    orders={
        "name": graph.Order(sql=lambda row: f"{row}.name_key", pg="text", description="The name, ё as е."),
        "created_at": graph.Order(
            sql=lambda row: f"{row}.created_at", pg="timestamptz", description="When it was made."
        ),
    },
    default_order=(("name", "ASC"),),
)
class Dispensary:
    """A dispensary."""

    name: str = graph.column("Its name, 1 to 200 characters.")
    neutral_name: str = graph.column("A legal name that does not tell what it treats, for papers.")
    address: str = graph.column("Its address, 1 to 200 characters.")
    phone: Phone | None = graph.column("Its phone.")
    latitude: float | None = graph.column("Degrees north, WGS 84.")
    longitude: float | None = graph.column("Degrees east, WGS 84.")
    time_zone: TimeZone = graph.column("Its time zone; its days begin and end by it.")
    staffed_beds: int | None = graph.column("How many beds it has staff for; null: all.", roles=STAFF)
    cleaning_after_check_out: bool | None = graph.column(
        "Whether a bed goes to cleaning when its patient leaves.", roles=STAFF
    )
    archived_at: DateTime | None = graph.column("Since when it is archived.")
    created_at: DateTime = graph.column("When it was registered.")
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    bed_counts: BedCounts | None = graph.embedded(
        lambda row, names: bed_counts(f"{row}.id", f"{row}.staffed_beds"),
        "Its beds by status.",
        roles=STAFF,
    )
    rooms: graph.Connection[Room] | None = graph.many(
        "dispensary_id", "Its rooms.", roles=STAFF, same_scope=True
    )
    beds: graph.Connection[Bed] | None = graph.many(
        "dispensary_id", "Its beds.", roles=STAFF, same_scope=True
    )
    stays: graph.Connection[Stay] = graph.many("dispensary_id", "Stays in it, open and ended.")
    doctors: list[Practitioner] | None = graph.listing(
        lambda row, child, names: (
            f"EXISTS (SELECT FROM role_grant g WHERE g.account_id = {child}.id AND g.role = 'DOCTOR' "
            f"AND g.dispensary_id = {row}.id) AND {child}.blocked_at IS NULL"
        ),
        "Its doctors, for choosing who attends.",
        order=lambda row, child: f"{child}.name, {child}.id",
        usual=30,
        roles=STAFF,
    )


@graph.type_(
    table="room",
    node=True,
    scope=staff_of(),
    description="A room (палата).",
    where={
        "dispensary_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Dispensary",
            description="Only of this dispensary.",
            sql=lambda row, value: f"{row}.dispensary_id = {value}",
        ),
        "sex": graph.Filter(
            type="list[RoomSex] | None",
            pg="text[]",
            description="Only rooms that take these.",
            sql=lambda row, value: f"{row}.sex = ANY({value})",
        ),
        "archived": ARCHIVED,
    },
    orders={"number": graph.Order(sql=lambda row: f"{row}.number_key", pg="text", description="The number.")},
    default_order=(("number", "ASC"),),
)
class Room:
    """A room."""

    number: str = graph.column("Its number or name, unique in the dispensary, 1 to 40 characters.")
    floor: int | None = graph.column("The floor it is on.")
    sex: RoomSex = graph.column("Whom it takes.")
    isolation: bool = graph.column("Whether it is for patients who must be apart.")
    archived_at: DateTime | None = graph.column("Since when it is archived.")
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    dispensary: Dispensary = graph.one("dispensary_id", "Where it is.", same_scope=True)
    beds: graph.Connection[Bed] = graph.many(
        "room_id", "Its beds.", default_order=(("label", "ASC"),), same_scope=True
    )


@graph.type_(
    table="bed",
    node=True,
    scope=staff_of(),
    description="A bed (койка).",
    where={
        "dispensary_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Dispensary",
            description="Only of this dispensary.",
            sql=lambda row, value: f"{row}.dispensary_id = {value}",
        ),
        "room_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Room",
            description="Only of this room.",
            sql=lambda row, value: f"{row}.room_id = {value}",
        ),
        "status": graph.Filter(
            type="list[BedStatus] | None",
            pg="text[]",
            description="Only in one of these statuses.",
            sql=lambda row, value: f"({bed_status(row)}) = ANY({value})",
        ),
        "archived": ARCHIVED,
    },
    orders={
        "label": graph.Order(sql=lambda row: f"{row}.label_key", pg="text", description="The label."),
        "room": graph.Order(
            sql=lambda row: f"(SELECT r.number_key FROM room r WHERE r.id = {row}.room_id)",
            pg="text",
            description="The room's number.",
        ),
    },
    default_order=(("room", "ASC"), ("label", "ASC")),
)
class Bed:
    """A bed."""

    label: str = graph.column("Its label, unique in the room, 1 to 40 characters.")
    profile: str = graph.column("What it is for (профиль койки), 1 to 100 characters.")
    status: BedStatus = graph.expression(
        lambda row, names: status_of(
            f"{names.joined(row, 'current_assignment')}.id IS NOT NULL",
            is_reserved(row),
            f"{row}.service_state",
        ),
        "Occupancy and service in one word.",
    )
    service_state: ServiceState = graph.column("Whether it can be used, whoever lies in it.")
    archived_at: DateTime | None = graph.column("Since when it is archived.")
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    room: Room = graph.one("room_id", "The room it stands in.", same_scope=True)
    dispensary: Dispensary = graph.one("dispensary_id", "Where it is.", same_scope=True)
    current_assignment: BedAssignment | None = graph.one(
        lambda row, child, names: f"{child}.bed_id = {row}.id AND {child}.ended_at IS NULL",
        "Who lies in it now.",
        roles=CLINICAL,
        same_scope=True,
        joined=True,
    )
    assignments: graph.Connection[BedAssignment] | None = graph.many(
        "bed_id", "Who has lain in it.", roles=CLINICAL, same_scope=True
    )
    current_reservation: Reservation | None = graph.one(
        lambda row, child, names: (
            f"{child}.bed_id = {row}.id AND {child}.ended_at IS NULL AND {child}.until > now()"
        ),
        "For whom it is kept now.",
        same_scope=True,
    )
    current_closure: BedClosure | None = graph.one(
        lambda row, child, names: f"{child}.bed_id = {row}.id AND {child}.reopened_at IS NULL",
        "Why it is closed now.",
    )
    closures: list[BedClosure] = graph.listing(
        lambda row, child, names: f"{child}.bed_id = {row}.id",
        "When and why it was closed, latest first.",
        order=lambda row, child: f"{child}.closed_at DESC, {child}.id DESC",
    )


@graph.type_(table="bed_closure", scope=staff_of(), description="An interval in which a bed was closed.")
class BedClosure:
    """A closure."""

    closed_at: DateTime = graph.column("From when.")
    reopened_at: DateTime | None = graph.column("Until when; null while it lasts.")
    reason: str = graph.column("Why, 1 to 1000 characters.")
    closed_by: Practitioner | None = graph.one("closed_by_id", "Who closed it.")


class Queries:
    """Root fields about facilities."""

    dispensary: Dispensary | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One dispensary.",
        args={"id": graph.key("Dispensary", "Its id.")},
        roles=STAFF | {"USER"},
    )
    dispensaries: graph.Connection[Dispensary] = graph.many(
        lambda row, child, names: "true", "Dispensaries.", roles=STAFF | {"USER"}
    )
    room: Room | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One room.",
        args={"id": graph.key("Room", "Its id.")},
        roles=STAFF,
    )
    rooms: graph.Connection[Room] = graph.many(lambda row, child, names: "true", "Rooms.", roles=STAFF)
    bed: Bed | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One bed.",
        args={"id": graph.key("Bed", "Its id.")},
        roles=STAFF,
    )
    beds: graph.Connection[Bed] = graph.many(lambda row, child, names: "true", "Beds.", roles=STAFF)
