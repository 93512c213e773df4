"""How every change of beds and stays begins: what it is about is locked, then looked at.

Each is one statement. The locks are always taken in this order: beds by id, then the patient, then the stay,
then the room; later, by whoever publishes, the feed's topic. So a burst on one bed queues up on its row, and
nobody waits in a circle. What a competitor committed while one waited is seen by a new statement only: so
the locking statement tells nothing, and the second one, begun when all the locks are held, tells everything
that the rules ask about. The rules themselves stand in `availability` and `stays`.
"""

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import Statement
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.queries import patient_in_dispensaries

# Each step counts what the one before it has locked, so that the order is certain. The room is shared with
# other check-ins; whoever changes its rule waits for them, and they for it.
LOCK = Statement(
    """
    WITH beds AS MATERIALIZED (
        SELECT id, room_id FROM bed
        WHERE id = ANY (
            ARRAY(SELECT bed_id FROM bed_assignment WHERE stay_id = CAST(:stay AS bigint))
            || ARRAY[CAST(:bed AS bigint), (SELECT bed_id FROM reservation WHERE id = CAST(:reservation AS bigint))]
        )
        ORDER BY id FOR UPDATE
    ), patients AS MATERIALIZED (
        SELECT id FROM patient
        WHERE id = coalesce(
                CAST(:patient AS bigint), (SELECT patient_id FROM stay WHERE id = CAST(:stay AS bigint))
            )
            AND (SELECT count(*) FROM beds) > 0
        FOR NO KEY UPDATE
    ), stays AS MATERIALIZED (
        SELECT id FROM stay
        WHERE id = CAST(:stay AS bigint) AND (SELECT count(*) FROM patients) > 0
        FOR UPDATE
    ), rooms AS MATERIALIZED (
        SELECT id FROM room
        WHERE id = (SELECT room_id FROM beds WHERE id = CAST(:bed AS bigint))
            AND (SELECT count(*) FROM patients) > 0 AND (SELECT count(*) FROM stays) >= 0
        FOR SHARE
    )
    SELECT ARRAY(SELECT id FROM beds) AS beds, (SELECT count(*) FROM rooms) AS rooms
    """
)

# Overlaps are asked as the exclusion constraints ask, so that their indexes answer.
LOOK = Statement(
    f"""
    WITH moment AS MATERIALIZED (
        SELECT now, coalesce(CAST(:since AS timestamptz), now) AS since FROM clock_timestamp() AS clock (now)
    )
    SELECT m.now, m.since,
        b.id AS bed_id, b.dispensary_id, b.service_state, b.archived_at IS NOT NULL AS bed_archived,
        r.id AS room_id, r.sex AS room_sex,
        inside.started_at AS occupied_since, inside.ended_at AS occupied_until,
        inside.planned_check_out_on AS expected_end_on,
        kept.id AS reservation_id, kept.patient_id AS reserved_for_id, kept.until AS reserved_until,
        p.id AS patient_id, p.sex AS patient_sex, p.archived_at IS NOT NULL AS patient_archived,
        elsewhere.id AS other_stay_id, elsewhere.dispensary_id AS other_dispensary_id,
        elsewhere.checked_in_at AS other_since, elsewhere.checked_out_at AS other_until,
        s.id AS stay_id, s.version AS stay_version, s.dispensary_id AS stay_dispensary_id, s.checked_out_at,
        EXISTS (
            SELECT FROM bed_assignment n WHERE n.stay_id = s.id AND n.bed_id <> ALL (CAST(:locked AS bigint[]))
        ) AS moved_meanwhile,
        last.id AS assignment_id, last.bed_id AS present_bed_id, last.started_at AS present_since,
        EXISTS (
            SELECT FROM role_grant g WHERE g.account_id = CAST(:doctor AS bigint) AND g.role = 'DOCTOR'
                AND g.dispensary_id = d.id
        ) AS doctor_there,
        CAST(m.since AT TIME ZONE d.time_zone AS date) AS first_day
    FROM moment m
    LEFT JOIN stay s ON s.id = CAST(:stay AS bigint)
    LEFT JOIN LATERAL (
        SELECT a.id, a.bed_id, a.started_at FROM bed_assignment a WHERE a.stay_id = s.id
        ORDER BY a.started_at DESC, a.id DESC LIMIT 1
    ) last ON true
    LEFT JOIN bed b ON b.id = CAST(:bed AS bigint)
    LEFT JOIN room r ON r.id = b.room_id
    LEFT JOIN dispensary d ON d.id = coalesce(b.dispensary_id, s.dispensary_id)
    LEFT JOIN LATERAL (
        SELECT a.started_at, a.ended_at, CASE WHEN a.ended_at IS NULL THEN n.planned_check_out_on END
            AS planned_check_out_on
        FROM bed_assignment a JOIN stay n ON n.id = a.stay_id
        WHERE b.id IS NOT NULL AND a.stay_id IS DISTINCT FROM CAST(:besides AS bigint)
            AND int8range(a.bed_id, a.bed_id, '[]') && int8range(b.id, b.id, '[]')
            AND tstzrange(a.started_at, a.ended_at) && tstzrange(m.since, CAST(:until AS timestamptz))
        ORDER BY a.ended_at IS NULL DESC, a.started_at LIMIT 1
    ) inside ON true
    LEFT JOIN reservation kept ON kept.bed_id = b.id AND kept.ended_at IS NULL AND kept.until > m.now
    LEFT JOIN patient p ON p.id = coalesce(CAST(:patient AS bigint), s.patient_id)
        AND (s.id IS NOT NULL OR CAST(:everywhere AS boolean)
            OR {patient_in_dispensaries("p", "CAST(:places AS bigint[])")})
    LEFT JOIN LATERAL (
        SELECT n.id, n.dispensary_id, n.checked_in_at, n.checked_out_at FROM stay n
        WHERE p.id IS NOT NULL AND n.id IS DISTINCT FROM CAST(:besides AS bigint)
            AND int8range(n.patient_id, n.patient_id, '[]') && int8range(p.id, p.id, '[]')
            AND tstzrange(n.checked_in_at, n.checked_out_at) && tstzrange(m.since, CAST(:until AS timestamptz))
        ORDER BY n.checked_out_at IS NULL DESC, n.checked_in_at LIMIT 1
    ) elsewhere ON true
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is so when the locks are held; what was not asked about, or is not there, is None."""

    now: datetime
    since: datetime
    """The instant asked about: the one given, else now."""

    bed_id: int | None
    dispensary_id: int | None
    service_state: str | None
    bed_archived: bool
    room_id: int | None
    room_sex: str | None
    occupied_since: datetime | None
    """Of the use of the bed that overlaps the interval; the open one, if it is among them."""
    occupied_until: datetime | None
    expected_end_on: date | None
    reservation_id: int | None
    """Of the reservation that is in force."""
    reserved_for_id: int | None
    reserved_until: datetime | None

    patient_id: int | None
    """None also where the actor may not know of the patient as a superadministrator or doctor."""
    patient_sex: str | None
    patient_archived: bool
    other_stay_id: int | None
    """Of the patient's stay that overlaps the interval; the open one, if it is among them."""
    other_dispensary_id: int | None
    other_since: datetime | None
    other_until: datetime | None

    stay_id: int | None
    stay_version: int | None
    stay_dispensary_id: int | None
    checked_out_at: datetime | None
    moved_meanwhile: bool
    """Whether the stay is in a bed now that was not its own yet when the locks were asked for."""
    assignment_id: int | None
    """Of the stay's last assignment, as the next two."""
    present_bed_id: int | None
    present_since: datetime | None

    doctor_there: bool
    """Whether the account named is a doctor of the bed's dispensary, else of the stay's."""
    first_day: date | None
    """The day there at the instant asked about."""


async def lock(
    session: AsyncSession,
    *,
    bed: int | None = None,
    patient: int | None = None,
    stay: int | None = None,
    reservation: int | None = None,
) -> list[int]:
    """All of them are locked, with the stay's patient and beds and the reservation's bed; the beds' keys."""
    row = await LOCK.row(session, bed=bed, patient=patient, stay=stay, reservation=reservation)
    beds: list[int] = row.beds
    return beds


async def look(
    session: AsyncSession,
    actor: Actor,
    *,
    locked: list[int],
    bed: int | None = None,
    patient: int | None = None,
    stay: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    besides: int | None = None,
    doctor: int | None = None,
) -> Facts:
    """What is so of them, in the interval from ``since`` (by default now) on, leaving out the stay ``besides``."""
    row = await LOOK.row(
        session,
        locked=locked,
        bed=bed,
        patient=patient,
        stay=stay,
        since=since,
        until=until,
        besides=besides,
        doctor=doctor,
        everywhere=actor.superadmin,
        places=sorted(actor.doctor_of),
    )
    return Facts(**row)
