"""The rules about slots and appointments that operations, jobs and the graph ask, as SQL, each in one place."""

from collections.abc import Callable

from ekoyka.outpatient.tables import LIVE

# Kinds of topics: of a doctor's slots; of what concerns one account.
SLOTS, PERSON = "slots", "person"


def slots_topic(doctor_id: int) -> str:
    """The topic of a doctor's slots."""
    return f"{SLOTS}:{doctor_id}"


def person_topic(account_id: int) -> str:
    """The topic of an account's appointments and notifications."""
    return f"{PERSON}:{account_id}"


def is_held(slot: str, now: str = "now()") -> str:
    """SQL of whether a slot row is kept for somebody who fills in a form."""
    return f"EXISTS (SELECT FROM slot_hold x WHERE x.slot_id = {slot}.id AND x.until > {now})"


def is_offered(slot: str, now: str = "now()") -> str:
    """SQL of whether a slot row is kept for somebody in the line."""
    return f"coalesce({slot}.offered_until > {now}, false)"


def is_off(slot: str) -> str:
    """SQL of whether the doctor sees nobody in a slot row's time."""
    return (
        f"EXISTS (SELECT FROM time_off x WHERE x.schedule_id = {slot}.schedule_id "
        f"AND x.ends_at > {slot}.starts_at AND x.starts_at < {slot}.ends_at)"
    )


def sees_patients(slot: str) -> str:
    """SQL of whether a slot row's doctor works there and is not blocked."""
    return (
        "EXISTS (SELECT FROM account x JOIN role_grant g ON g.account_id = x.id AND g.role = 'DOCTOR' "
        f"AND g.dispensary_id = {slot}.dispensary_id WHERE x.id = {slot}.doctor_id AND x.blocked_at IS NULL)"
    )


def is_free(slot: str, now: str = "now()") -> str:
    """SQL of whether a slot row can be booked by anybody."""
    return (
        f"({slot}.starts_at > {now} AND {slot}.withdrawn_at IS NULL AND NOT {slot}.taken "
        f"AND NOT {is_held(slot, now)} AND NOT {is_offered(slot, now)} AND NOT {is_off(slot)} "
        f"AND {sees_patients(slot)})"
    )


def follow_ups(stay: str, count: int = 10) -> str:
    """A SELECT of the ids of the next free slots of a stay's dispensary, within a week of its end (or of now), in
    which the patient has nothing else."""
    since = f"greatest(coalesce({stay}.checked_out_at, now()), now())"
    return (
        f"(SELECT s.id FROM slot s WHERE s.dispensary_id = {stay}.dispensary_id AND s.starts_at > {since} "
        f"AND s.starts_at < {since} + interval '7 days' AND {is_free('s')} AND NOT EXISTS (SELECT FROM appointment n "
        f"WHERE n.patient_id = {stay}.patient_id AND {LIVE.format(row='n.')} "
        f"AND n.starts_at < s.ends_at AND n.ends_at > s.starts_at) ORDER BY s.starts_at, s.id LIMIT {count})"
    )


def slot_status(slot: str) -> str:
    """SQL of a slot row's `SlotStatus`."""
    return (
        f"CASE WHEN {slot}.withdrawn_at IS NOT NULL THEN 'ENTERED_IN_ERROR' WHEN {slot}.taken THEN 'BUSY' "
        f"WHEN {is_free(slot)} THEN 'FREE' "
        f"WHEN {slot}.starts_at > now() AND ({is_held(slot)} OR {is_offered(slot)}) THEN 'BUSY_TENTATIVE' "
        "ELSE 'BUSY_UNAVAILABLE' END"
    )


def nearest_slots(
    *, dispensary: str, at: str, where: Callable[[str], str], count: int = 3, now: str = "now()"
) -> str:
    """A SELECT of the free slots nearest to an instant (id, doctor_id, starts_at, distance in seconds), at most so
    many on either side of it, given SQL of where and when and a condition on a slot row."""

    def side(sign: str, way: str) -> str:
        return (
            f"(SELECT s.id, s.doctor_id, s.starts_at, abs(extract(epoch FROM s.starts_at - {at})) AS distance "
            f"FROM slot s WHERE s.dispensary_id = {dispensary} AND s.starts_at {sign} {at} AND {where('s')} "
            f"AND {is_free('s', now)} ORDER BY s.starts_at {way}, s.id LIMIT {count})"
        )

    return f"{side('>=', 'ASC')} UNION ALL {side('<', 'DESC')}"
