"""What people are told: notifications with each change, reminders ahead of visits, and what has been read.

The parts of statements that tell stand here, so that each change tells in the statement that makes it.
"""

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.database import NETWORK, Database, Statement
from ekoyka.errors import NotFound
from ekoyka.identity.actors import Actor
from ekoyka.outpatient.queries import PERSON, SLOTS
from ekoyka.outpatient.tables import NotificationKind

BATCH = 500


def people(appointment: str) -> str:
    """A SELECT of whom a CTE's appointments concern: (appointment_id, account_id, patient): patient and doctor."""
    return (
        f"SELECT c.id AS appointment_id, p.account_id, true AS patient FROM {appointment} c "
        "JOIN patient p ON p.id = c.patient_id WHERE p.account_id IS NOT NULL "
        f"UNION SELECT c.id, c.doctor_id, false FROM {appointment} c"
    )


def telling(change: str, kind: NotificationKind | None = None) -> str:
    """The last CTEs of a statement about appointments: it notifies, and publishes to persons and doctors' slots.

    They read the CTEs ``changed`` (appointments as they are now), ``people`` and ``touched`` (doctor_id, slot_id,
    change). Patients are notified of what others do and of what they do themselves, doctors of the former.
    """
    notified = (
        f"""INSERT INTO notification (account_id, dispensary_id, kind, appointment_id, occasion)
            SELECT w.account_id, c.dispensary_id, '{kind}', c.id, c.version
            FROM changed c JOIN people w ON w.appointment_id = c.id
            WHERE w.patient OR w.account_id <> CAST(:account AS bigint)
            ON CONFLICT DO NOTHING RETURNING id, account_id"""
        if kind
        else "SELECT CAST(NULL AS bigint) AS id, CAST(NULL AS bigint) AS account_id WHERE false"
    )
    return f"""told AS ({notified}), event AS (
        SELECT '{PERSON}:' || account_id AS topic, 1 AS place,
            jsonb_build_object('appointment', appointment_id, 'change', '{change}') AS payload
        FROM (SELECT DISTINCT appointment_id, account_id FROM people) w
        UNION ALL
        {notification_event("told")}
        UNION ALL
        {slot_event("touched")}
    ), {feed.publishing("event")}"""


def notification_event(told: str) -> str:
    """A SELECT of events for `feed.publishing`, of a CTE's notifications (id, account_id)."""
    return (
        f"SELECT '{PERSON}:' || account_id AS topic, 2 AS place, jsonb_build_object('notification', id) AS payload "
        f"FROM {told}"
    )


def slot_event(touched: str) -> str:
    """A SELECT of events for `feed.publishing`, of a CTE's slots (doctor_id, slot_id, change)."""
    return (
        f"SELECT '{SLOTS}:' || doctor_id AS topic, 1 AS place, "
        f"jsonb_build_object('slot', slot_id, 'change', change) AS payload FROM {touched}"
    )


# Of what was booked within the day no reminder a day ahead is made, and none of it once an hour is left.
_REMIND = feed.Publication(
    f"""
    WITH due AS (
        SELECT a.id, a.dispensary_id, a.starts_at, p.account_id, k.kind,
            CAST(extract(epoch FROM a.starts_at) AS bigint) AS occasion
        FROM appointment a JOIN patient p ON p.id = a.patient_id
        CROSS JOIN (VALUES ('REMINDER_DAY', interval '1 day', interval '1 hour'),
            ('REMINDER_HOUR', interval '1 hour', interval '0')) AS k (kind, ahead, until)
        WHERE a.status = 'BOOKED' AND p.account_id IS NOT NULL
            AND a.starts_at > clock_timestamp() + k.until AND a.starts_at <= clock_timestamp() + k.ahead
            AND a.starts_at < clock_timestamp() + interval '1 day 1 minute'
            AND a.placed_at <= a.starts_at - k.ahead
            AND NOT EXISTS (
                SELECT FROM notification n WHERE n.appointment_id = a.id AND n.account_id = p.account_id
                    AND n.kind = k.kind AND n.occasion = CAST(extract(epoch FROM a.starts_at) AS bigint)
            )
        ORDER BY a.starts_at, a.id LIMIT {BATCH}
    ), told AS (
        INSERT INTO notification (account_id, dispensary_id, kind, appointment_id, occasion)
        SELECT account_id, dispensary_id, kind, id, occasion FROM due ORDER BY account_id, id
        ON CONFLICT DO NOTHING RETURNING id, account_id
    ), event AS ({notification_event("told")}), {feed.publishing("event")}
    SELECT (SELECT count(*) FROM told) AS told, {feed.PUBLISHED}
    FROM (VALUES (true)) AS one LEFT JOIN counted ON true
    """
)


async def remind(database: Database) -> int:
    """Patients are reminded of visits a day and an hour ahead, once each; how many reminders were made."""
    reminded = 0
    while True:
        async with database.transaction(ward=NETWORK) as session:
            told: int = (await _REMIND.row(session)).told
        reminded += told
        if not told:
            return reminded


_READ = feed.Publication(
    f"""
    WITH read AS (
        UPDATE notification SET read_at = clock_timestamp()
        WHERE account_id = :account AND read_at IS NULL AND coalesce(id = CAST(:id AS bigint), true)
        RETURNING id, account_id
    ), event AS ({notification_event("read")}), {feed.publishing("event")}
    SELECT (SELECT count(*) FROM read) AS read, {feed.PUBLISHED}
    FROM (VALUES (true)) AS one LEFT JOIN counted ON true
    """
)
_OWN = Statement("SELECT id FROM notification WHERE id = :id AND account_id = :account")


async def mark_read(session: AsyncSession, *, actor: Actor, notification_id: int | None) -> int:
    """The actor's notification is marked as read, or all of theirs without one; how many were not before.

    Raises `NotFound`.
    """
    if notification_id is not None and not await _OWN.rows(
        session, id=notification_id, account=actor.account_id
    ):
        raise NotFound(("id",))
    read: int = (await _READ.row(session, id=notification_id, account=actor.account_id)).read
    return read
