"""How every change of appointments begins: what it is about is locked, then looked at.

As for beds, each is one statement, and the second sees what competitors committed while the locks were waited for.
The order of the locks: schedules by id (shared; who makes slots or changes the rules has them alone), slots by id,
patients by id, appointments by id, accounts by id; later, by whoever publishes, the feed's topics by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import Row, Statement
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.queries import patient_in_dispensaries
from ekoyka.outpatient.queries import is_off
from ekoyka.outpatient.tables import LIVE
from ekoyka.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a deployment decides about appointments."""

    most_open: int
    cancel_before_s: int
    hold_s: int
    offer_s: int

    @classmethod
    def of(cls, settings: Settings) -> "Policy":
        """As the settings say."""
        return cls(
            most_open=settings.appointments_per_patient,
            cancel_before_s=settings.cancel_before_s,
            hold_s=settings.hold_s,
            offer_s=settings.offer_s,
        )

    def at_any_time(self) -> "Policy":
        """The same, without a time after which patients do not move their appointments themselves."""
        return replace(self, cancel_before_s=0)


# Accounts, so that nobody is blocked amid it, and their keys, which the written rows refer to, are not waited for
# when the feed's topics are locked.
LOCK = Statement(
    """
    WITH wanted AS MATERIALIZED (
        SELECT CAST(:slots AS bigint[])
            || ARRAY(SELECT slot_id FROM appointment WHERE id = ANY (CAST(:appointments AS bigint[]))) AS slots
    ), schedules AS MATERIALIZED (
        SELECT id FROM schedule
        WHERE id = ANY (ARRAY(SELECT s.schedule_id FROM slot s, wanted w WHERE s.id = ANY (w.slots)))
        ORDER BY id FOR SHARE
    ), slots AS MATERIALIZED (
        SELECT id, doctor_id FROM slot
        WHERE id = ANY (ARRAY(SELECT unnest(slots) FROM wanted)) AND (SELECT count(*) FROM schedules) > 0
        ORDER BY id FOR UPDATE
    ), patients AS MATERIALIZED (
        SELECT id, account_id FROM patient
        WHERE (SELECT count(*) FROM slots) >= 0 AND id = ANY (
            ARRAY(SELECT patient_id FROM appointment WHERE id = ANY (CAST(:appointments AS bigint[])))
            || CAST(:patient AS bigint)
            || (SELECT own.id FROM patient own
                WHERE CAST(:own AS boolean) AND own.account_id = CAST(:account AS bigint))
        )
        ORDER BY id FOR NO KEY UPDATE
    ), appointments AS MATERIALIZED (
        SELECT id FROM appointment
        WHERE id = ANY (CAST(:appointments AS bigint[])) AND (SELECT count(*) FROM patients) >= 0
        ORDER BY id FOR UPDATE
    ), accounts AS MATERIALIZED (
        SELECT id FROM account
        WHERE (SELECT count(*) FROM appointments) >= 0 AND id = ANY (
            ARRAY(SELECT doctor_id FROM slots) || ARRAY(SELECT account_id FROM patients) || CAST(:account AS bigint)
        )
        ORDER BY id FOR KEY SHARE
    )
    SELECT ARRAY(SELECT id FROM slots) AS slots, (SELECT count(*) FROM accounts) AS accounts
    """
)

LOOK = Statement(
    f"""
    WITH moment AS MATERIALIZED (SELECT now FROM clock_timestamp() AS clock (now))
    SELECT m.now,
        s.id AS slot_id, s.doctor_id, s.dispensary_id, s.starts_at, s.ends_at,
        s.withdrawn_at IS NOT NULL AS withdrawn, {is_off("s")} AS off, s.taken AS taken,
        x.blocked_at IS NOT NULL OR d.archived_at IS NOT NULL OR NOT EXISTS (
            SELECT FROM role_grant g WHERE g.account_id = s.doctor_id AND g.role = 'DOCTOR'
                AND g.dispensary_id = s.dispensary_id
        ) AS doctor_gone,
        EXISTS (
            SELECT FROM slot_hold h WHERE h.slot_id = s.id AND h.until > m.now
                AND h.account_id <> CAST(:account AS bigint)
        ) AS held,
        (SELECT o.id FROM slot_offer o WHERE o.slot_id = s.id AND o.ended_at IS NULL AND o.until > m.now) AS offer_id,
        p.id AS patient_id, p.account_id AS patient_account_id, p.archived_at IS NOT NULL AS patient_archived,
        y.blocked_at IS NOT NULL AS patient_blocked,
        p.account_id IS NOT DISTINCT FROM CAST(:account AS bigint) AS own,
        CAST(:everywhere AS boolean) OR {patient_in_dispensaries("p", "CAST(:places AS bigint[])")} AS patient_known,
        clash.id AS clash_id, clash.dispensary_id AS clash_dispensary_id,
        (
            SELECT count(*) FROM appointment n WHERE n.patient_id = p.id AND n.status = 'BOOKED'
                AND n.starts_at > m.now AND n.id IS DISTINCT FROM a.id
        ) AS open_appointments,
        a.id AS appointment_id, a.version, a.status, a.slot_id AS former_slot_id,
        a.dispensary_id AS former_dispensary_id, a.starts_at AS former_starts_at,
        CAST(a.starts_at AT TIME ZONE e.time_zone AS date) > CAST(m.now AT TIME ZONE e.time_zone AS date)
            AS another_day,
        {is_off("f")} AS former_off
    FROM moment m
    LEFT JOIN appointment a ON a.id = CAST(:appointment AS bigint)
    LEFT JOIN slot f ON f.id = a.slot_id
    LEFT JOIN dispensary e ON e.id = a.dispensary_id
    LEFT JOIN slot s ON s.id = CAST(:slot AS bigint)
    LEFT JOIN dispensary d ON d.id = s.dispensary_id
    LEFT JOIN account x ON x.id = s.doctor_id
    LEFT JOIN patient p ON p.id = coalesce(
        a.patient_id, CAST(:patient AS bigint),
        (SELECT own.id FROM patient own WHERE CAST(:own AS boolean) AND own.account_id = CAST(:account AS bigint))
    )
    LEFT JOIN account y ON y.id = p.account_id
    LEFT JOIN LATERAL (
        SELECT n.id, n.dispensary_id FROM appointment n
        WHERE s.id IS NOT NULL AND n.id IS DISTINCT FROM a.id AND {LIVE.format(row="n.")}
            AND int8range(n.patient_id, n.patient_id, '[]') && int8range(p.id, p.id, '[]')
            AND tstzrange(n.starts_at, n.ends_at) && tstzrange(s.starts_at, s.ends_at)
        LIMIT 1
    ) clash ON true
    """
)


async def lock(
    session: AsyncSession,
    actor: Actor,
    *,
    slots: Sequence[int] = (),
    appointments: Sequence[int] = (),
    patient: int | None = None,
    own: bool = False,
) -> list[int]:
    """All of them are locked, with the appointments' slots and patients; the slots' keys.

    ``own``: the patient is the one whose record is linked to the actor's account.
    """
    row = await LOCK.row(
        session,
        slots=list(slots),
        appointments=list(appointments),
        patient=patient,
        own=own,
        account=actor.account_id,
    )
    locked: list[int] = row.slots
    return locked


async def look(
    session: AsyncSession,
    actor: Actor,
    *,
    slot: int | None = None,
    appointment: int | None = None,
    patient: int | None = None,
    own: bool = False,
) -> Row:
    """What is so of the slot, the appointment and its patient (else of this one); what is not there is None."""
    return await LOOK.row(
        session,
        slot=slot,
        appointment=appointment,
        patient=patient,
        own=own,
        account=actor.account_id,
        everywhere=actor.superadmin,
        places=sorted(actor.doctor_of),
    )
