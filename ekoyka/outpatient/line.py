"""The line for freed slots: who is first is offered one, for a while; when that lapses it passes on.

A slot counts as freed from the cancellation on until somebody books it.
"""

from collections.abc import Iterable

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.database import NETWORK, Database, Statement
from ekoyka.outpatient.notifications import notification_event, slot_event
from ekoyka.outpatient.queries import is_free
from ekoyka.outpatient.tables import LIVE, NotificationKind

BATCH = 200

# For each slot who has waited longest; whoever comes first for several is offered the earliest, and the others go to
# the next in line when it is looked again.
_OFFER = feed.Publication(
    f"""
    WITH freed AS MATERIALIZED (
        SELECT s.id, s.doctor_id, s.dispensary_id, s.starts_at, s.ends_at FROM slot s
        WHERE s.id = ANY (CAST(:slots AS bigint[])) AND s.freed_at IS NOT NULL AND {is_free("s", "clock_timestamp()")}
    ), first AS (
        SELECT f.id AS slot_id, f.doctor_id, f.dispensary_id, f.starts_at, w.id AS entry_id, w.patient_id
        FROM freed f CROSS JOIN LATERAL (
            SELECT w.id, w.patient_id
            FROM waiting_entry w
            JOIN patient p ON p.id = w.patient_id AND p.archived_at IS NULL
            LEFT JOIN account x ON x.id = p.account_id
            LEFT JOIN appointment a ON a.id = w.appointment_id
            WHERE w.dispensary_id = f.dispensary_id AND w.ended_at IS NULL AND x.blocked_at IS NULL
                AND coalesce(w.doctor_id, f.doctor_id) = f.doctor_id
                AND (w.appointment_id IS NULL OR (a.status = 'BOOKED' AND a.starts_at > f.starts_at))
                AND NOT EXISTS (
                    SELECT FROM slot_offer o WHERE o.entry_id = w.id AND (o.slot_id = f.id OR o.ended_at IS NULL)
                )
                AND NOT EXISTS (
                    SELECT FROM appointment n WHERE n.patient_id = w.patient_id AND {LIVE.format(row="n.")}
                        AND n.id IS DISTINCT FROM w.appointment_id
                        AND n.starts_at < f.ends_at AND n.ends_at > f.starts_at
                )
            ORDER BY w.joined_at, w.id LIMIT 1
        ) w
    ), offered AS (
        INSERT INTO slot_offer (entry_id, slot_id, dispensary_id, patient_id, offered_at, until)
        SELECT entry_id, slot_id, dispensary_id, patient_id, clock_timestamp(),
            least(clock_timestamp() + make_interval(secs => :offer_s), starts_at)
        FROM first ORDER BY starts_at, slot_id
        ON CONFLICT DO NOTHING RETURNING *
    ), told AS (
        INSERT INTO notification (account_id, dispensary_id, kind, offer_id, occasion)
        SELECT p.account_id, o.dispensary_id, '{NotificationKind.OFFER}', o.id, 0
        FROM offered o JOIN patient p ON p.id = o.patient_id WHERE p.account_id IS NOT NULL
        ON CONFLICT DO NOTHING RETURNING id, account_id
    ), touched AS (
        SELECT f.doctor_id, f.id AS slot_id, 'OFFERED' AS change FROM offered o JOIN freed f ON f.id = o.slot_id
    ), event AS (
        {notification_event("told")} UNION ALL {slot_event("touched")}
    ), {feed.publishing("event")}
    SELECT (SELECT count(*) FROM offered) AS offered, {feed.PUBLISHED}
    FROM (VALUES (true)) AS one LEFT JOIN counted ON true
    """
)


async def pass_on(session: AsyncSession, slots: Iterable[int], *, offer_s: int) -> int:
    """Of these slots, those that are free again are offered to who is first in line; how many were.

    Call it with the slots locked.
    """
    wanted = list(slots)
    offered = 0
    while wanted:
        made = (await _OFFER.row(session, slots=wanted, offer_s=float(offer_s))).offered
        offered += made
        if not made:
            break
    return offered


# Nobody waits for anybody here: what is locked is somebody else's to look at. All of the slots are theirs that were
# kept for somebody until now, or are free again while somebody may wait for them.
_DUE = Statement(
    f"""
    SELECT s.id FROM slot s JOIN schedule c ON c.id = s.schedule_id
    WHERE s.id > :after AND s.id = ANY (ARRAY(
        SELECT slot_id FROM slot_offer WHERE ended_at IS NULL AND until <= clock_timestamp()
        UNION ALL SELECT slot_id FROM slot_hold WHERE until <= clock_timestamp()
        UNION ALL SELECT f.id FROM slot f
        WHERE f.freed_at IS NOT NULL AND f.starts_at > clock_timestamp() AND f.withdrawn_at IS NULL AND EXISTS (
            SELECT FROM waiting_entry w WHERE w.dispensary_id = f.dispensary_id AND w.ended_at IS NULL
        )
    ))
    ORDER BY s.id LIMIT {BATCH} FOR SHARE OF c SKIP LOCKED FOR UPDATE OF s SKIP LOCKED
    """
)
_LAPSE = feed.Publication(
    f"""
    WITH lapsed AS (
        UPDATE slot_offer SET ended_at = until, outcome = 'LAPSED'
        WHERE slot_id = ANY (CAST(:slots AS bigint[])) AND ended_at IS NULL AND until <= clock_timestamp()
        RETURNING slot_id
    ), let_go AS (
        DELETE FROM slot_hold WHERE slot_id = ANY (CAST(:slots AS bigint[])) AND until <= clock_timestamp()
        RETURNING slot_id
    ), touched AS (
        SELECT s.doctor_id, s.id AS slot_id, 'RELEASED' AS change FROM slot s
        WHERE s.id IN (SELECT slot_id FROM lapsed UNION SELECT slot_id FROM let_go)
    ), event AS ({slot_event("touched")}), {feed.publishing("event")}
    SELECT (SELECT count(*) FROM touched) AS lapsed, {feed.PUBLISHED}
    FROM (VALUES (true)) AS one LEFT JOIN counted ON true
    """
)


async def lapse(database: Database, *, offer_s: int) -> tuple[int, int]:
    """Holds and offers whose time has run out are over, and their slots passed on; how many were, of each.

    Several processes may do it at once: each takes what the others have not.
    """
    lapsed = offered = after = 0
    while True:
        async with database.transaction(ward=NETWORK) as session:
            slots = [row.id for row in await _DUE.rows(session, after=after)]
            if not slots:
                return lapsed, offered
            lapsed += (await _LAPSE.row(session, slots=slots)).lapsed
            offered += await pass_on(session, slots, offer_s=offer_s)
        after = slots[-1]
