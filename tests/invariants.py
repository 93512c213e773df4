"""What is always true of the rows (DESIGN, section 6), asked of the database itself."""

from ekoyka.database import Database

_QUESTIONS = {
    "a bed with two open assignments": (
        "SELECT bed_id FROM bed_assignment WHERE ended_at IS NULL GROUP BY bed_id HAVING count(*) > 1"
    ),
    "overlapping assignments of a bed": (
        "SELECT a.id FROM bed_assignment a JOIN bed_assignment b ON a.bed_id = b.bed_id AND a.id < b.id "
        "AND tstzrange(a.started_at, a.ended_at) && tstzrange(b.started_at, b.ended_at)"
    ),
    "a patient with two open stays": (
        "SELECT patient_id FROM stay WHERE checked_out_at IS NULL GROUP BY patient_id HAVING count(*) > 1"
    ),
    "overlapping stays of a patient": (
        "SELECT a.id FROM stay a JOIN stay b ON a.patient_id = b.patient_id AND a.id < b.id "
        "AND tstzrange(a.checked_in_at, a.checked_out_at) && tstzrange(b.checked_in_at, b.checked_out_at)"
    ),
    "an open stay without its one open assignment, or an ended one with any": (
        "SELECT s.id FROM stay s WHERE (SELECT count(*) FROM bed_assignment a "
        "WHERE a.stay_id = s.id AND a.ended_at IS NULL) <> (CASE WHEN s.checked_out_at IS NULL THEN 1 ELSE 0 END)"
    ),
    "a stay that ends before it begins": "SELECT id FROM stay WHERE checked_out_at < checked_in_at",
    "assignments that do not cover their stay without a gap": (
        "SELECT s.id FROM stay s JOIN bed_assignment a ON a.stay_id = s.id GROUP BY s.id "
        "HAVING range_agg(tstzrange(a.started_at, a.ended_at)) <> "
        "tstzmultirange(tstzrange(s.checked_in_at, s.checked_out_at))"
    ),
    "slots of a doctor that overlap": (
        "SELECT a.id FROM slot a JOIN slot b ON a.doctor_id = b.doctor_id AND a.id < b.id "
        "AND a.withdrawn_at IS NULL AND b.withdrawn_at IS NULL "
        "AND tstzrange(a.starts_at, a.ends_at) && tstzrange(b.starts_at, b.ends_at)"
    ),
    "a slot with two live appointments": (
        "SELECT slot_id FROM appointment WHERE status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR') "
        "GROUP BY slot_id HAVING count(*) > 1"
    ),
    "a patient with two live appointments at one time": (
        "SELECT a.id FROM appointment a JOIN appointment b ON a.patient_id = b.patient_id AND a.id < b.id "
        "AND a.status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR') AND b.status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR') "
        "AND tstzrange(a.starts_at, a.ends_at) && tstzrange(b.starts_at, b.ends_at)"
    ),
    "an appointment at another time, or with another doctor, than its slot": (
        "SELECT a.id FROM appointment a JOIN slot s ON s.id = a.slot_id WHERE (a.doctor_id, a.dispensary_id, "
        "a.starts_at, a.ends_at) <> (s.doctor_id, s.dispensary_id, s.starts_at, s.ends_at)"
    ),
    "a live appointment in a slot that was withdrawn": (
        "SELECT a.id FROM appointment a JOIN slot s ON s.id = a.slot_id WHERE s.withdrawn_at IS NOT NULL "
        "AND a.status = 'BOOKED'"
    ),
    "a slot that is taken without an appointment, or not with one": (
        "SELECT s.id FROM slot s WHERE s.taken <> EXISTS (SELECT FROM appointment a WHERE a.slot_id = s.id "
        "AND a.status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR'))"
    ),
    "a slot that is offered without an offer, or not with one": (
        "SELECT s.id FROM slot s WHERE s.offered_until IS DISTINCT FROM "
        "(SELECT o.until FROM slot_offer o WHERE o.slot_id = s.id AND o.ended_at IS NULL)"
    ),
    "a slot that is offered, and booked": (
        "SELECT o.id FROM slot_offer o JOIN appointment a ON a.slot_id = o.slot_id "
        "AND a.status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR') WHERE o.ended_at IS NULL AND o.until > now()"
    ),
    "a feed with a gap": (
        "SELECT topic FROM feed_event GROUP BY topic HAVING max(cursor) - min(cursor) + 1 <> count(*)"
    ),
}


async def broken_invariants(database: Database) -> list[str]:
    """The invariants that do not hold; none, if all is well."""
    return [name for name, question in _QUESTIONS.items() if await database.fetch(question)]
