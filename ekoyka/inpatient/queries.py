"""The rules about beds and patients that both operations and the graph ask, as SQL, each in one place."""

from enum import StrEnum

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.database import Statement

_BEDS = "beds"  # the kind of topic


class BedStatus(StrEnum):
    """Occupancy and service state of a bed in one word; derived, never stored."""

    FREE = "FREE"
    OCCUPIED = "OCCUPIED"
    RESERVED = "RESERVED"
    CLEANING = "CLEANING"
    CONTAMINATED = "CONTAMINATED"
    ISOLATED = "ISOLATED"
    CLOSED = "CLOSED"


class BedChange(StrEnum):
    """What happened to a bed."""

    CHECKED_IN = "CHECKED_IN"
    CHECKED_OUT = "CHECKED_OUT"
    TRANSFERRED_IN = "TRANSFERRED_IN"
    TRANSFERRED_OUT = "TRANSFERRED_OUT"
    RESERVED = "RESERVED"
    RESERVATION_RELEASED = "RESERVATION_RELEASED"
    RESERVATION_LAPSED = "RESERVATION_LAPSED"
    SERVICE_STATE_CHANGED = "SERVICE_STATE_CHANGED"
    CREATED = "CREATED"
    DELETED = "DELETED"
    ARCHIVED = "ARCHIVED"
    CORRECTED = "CORRECTED"


class BedObstacle(StrEnum):
    """Why a bed does not suit a patient."""

    OCCUPIED = "OCCUPIED"
    RESERVED = "RESERVED"
    CLEANING = "CLEANING"
    CONTAMINATED = "CONTAMINATED"
    ISOLATED = "ISOLATED"
    CLOSED = "CLOSED"
    ROOM_SEX = "ROOM_SEX"
    ISOLATION_NEEDED = "ISOLATION_NEEDED"
    ISOLATION_ROOM = "ISOLATION_ROOM"
    STAFFED_LIMIT = "STAFFED_LIMIT"


def status_of(occupied: str, reserved: str, service_state: str) -> str:
    """SQL of a `BedStatus`, given SQL of what it follows from."""
    return (
        f"CASE WHEN {occupied} THEN 'OCCUPIED' WHEN {reserved} THEN 'RESERVED'"
        f" WHEN {service_state} = 'IN_SERVICE' THEN 'FREE' ELSE {service_state} END"
    )


def is_occupied(bed: str) -> str:
    """SQL of whether somebody lies in a bed row."""
    return f"EXISTS (SELECT FROM bed_assignment a WHERE a.bed_id = {bed}.id AND a.ended_at IS NULL)"


def is_reserved(bed: str) -> str:
    """SQL of whether a bed row is kept for anybody."""
    return f"EXISTS (SELECT FROM reservation r WHERE r.bed_id = {bed}.id AND r.ended_at IS NULL AND r.until > now())"


def bed_status(bed: str) -> str:
    """SQL of a bed row's `BedStatus`."""
    return status_of(is_occupied(bed), is_reserved(bed), f"{bed}.service_state")


def patient_in_dispensaries(patient: str, ids: str) -> str:
    """SQL of whether a patient row is known in one of the dispensaries: registered there, a stay or a visit,
    or expected."""
    return (
        f"({patient}.known_in && {ids}"
        f" OR EXISTS (SELECT FROM reservation k WHERE k.patient_id = {patient}.id"
        f" AND k.dispensary_id = ANY({ids}) AND k.ended_at IS NULL))"
    )


def bed_options(patient: str, dispensary: str) -> str:
    """A SELECT of the dispensary's beds for the patient, given SQL of both ids.

    Columns: bed_id, patient_id, suits, obstacles (text[], in the order of `BedObstacle`), place. Best first: kept for
    this patient; isolation rooms for who needs them; rooms of the patient's own sex before those for
    anyone; rooms with company before empty ones; then by room and label.
    """
    return f"""(
        SELECT o.bed_id, o.patient_id, o.obstacles = '{{}}' AS suits, o.obstacles, row_number() OVER (
            ORDER BY cardinality(o.obstacles), o.kept DESC, o.for_anyone, o.company DESC,
                o.room_key, o.label_key, o.bed_id
        )::int AS place
        FROM (
            SELECT b.id AS bed_id, p.id AS patient_id, kept, r.sex = 'ANY' AS for_anyone,
                r.number_key AS room_key, b.label_key,
                (SELECT count(*) FROM bed n JOIN bed_assignment a ON a.bed_id = n.id AND a.ended_at IS NULL
                    WHERE n.room_id = r.id) AS company,
                array_remove(ARRAY[
                    CASE WHEN s.status <> 'FREE' AND NOT (s.status = 'RESERVED' AND kept) THEN s.status END,
                    CASE WHEN r.sex NOT IN ('ANY', p.sex) THEN 'ROOM_SEX' END,
                    CASE WHEN p.needs_isolation AND NOT r.isolation THEN 'ISOLATION_NEEDED' END,
                    CASE WHEN r.isolation AND NOT p.needs_isolation THEN 'ISOLATION_ROOM' END,
                    CASE WHEN d.staffed_beds <= t.taken THEN 'STAFFED_LIMIT' END
                ], NULL) AS obstacles
            FROM dispensary d
            JOIN patient p ON p.id = {patient}
            CROSS JOIN LATERAL (SELECT count(*) AS taken FROM bed_assignment a
                WHERE a.dispensary_id = d.id AND a.ended_at IS NULL) t
            JOIN bed b ON b.dispensary_id = d.id AND b.archived_at IS NULL
            JOIN room r ON r.id = b.room_id
            CROSS JOIN LATERAL (SELECT {bed_status("b")} AS status) s
            CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM reservation v WHERE v.bed_id = b.id
                AND v.patient_id = p.id AND v.ended_at IS NULL AND v.until > now()) AS kept) k
            WHERE d.id = {dispensary}
        ) o
    )"""


_ALTERNATIVES = Statement(
    f"SELECT bed_id FROM {bed_options('CAST(:patient AS bigint)', 'CAST(:dispensary AS bigint)')} x "
    "WHERE suits AND bed_id <> CAST(:besides AS bigint) ORDER BY place LIMIT 3"
)


async def alternatives(
    session: AsyncSession, *, patient_id: int | None, dispensary_id: int, besides: int
) -> list[int]:
    """Up to three beds that suit the patient instead, best first; none where nobody is named."""
    if patient_id is None:
        return []
    found = await _ALTERNATIVES.rows(session, patient=patient_id, dispensary=dispensary_id, besides=besides)
    return [row.bed_id for row in found]


def beds_topic(dispensary_id: int) -> str:
    """The topic of a dispensary's beds."""
    return f"{_BEDS}:{dispensary_id}"


def bed_event(dispensary: str, bed: str, change: str, status: str, place: str = "1") -> str:
    """SQL of a row for `feed.publishing`, given SQL of its parts: a bed has changed, and what its status is now."""
    return (
        f"SELECT '{_BEDS}:' || {dispensary} AS topic, {place} AS place, "
        f"jsonb_build_object('bed', {bed}, 'change', {change}, 'status', {status}) AS payload"
    )


_PUBLISH_BEDS = feed.Publication(
    f"""
    WITH event AS (
        {bed_event("CAST(:dispensary AS bigint)", "c.bed", "c.change", bed_status("b"), "c.place")}
        FROM unnest(CAST(:beds AS bigint[]), CAST(:changes AS text[])) WITH ORDINALITY AS c (bed, change, place)
        LEFT JOIN bed b ON b.id = c.bed
    ), {feed.publishing("event")}
    SELECT {feed.PUBLISHED} FROM counted
    """
)


async def publish_beds(session: AsyncSession, dispensary_id: int, *changes: tuple[int, BedChange]) -> None:
    """The dispensary's feed tells of the beds' changes, each with the status it leads to. Call it last."""
    await _PUBLISH_BEDS.rows(
        session,
        dispensary=dispensary_id,
        beds=[bed for bed, _ in changes],
        changes=[change.value for _, change in changes],
    )
