"""What notifications say: made when they are read, in the reader's language, as SQL.

They name no organisation and nothing that it treats: a telephone lies on the table with its screen up.
"""

from ekoyka.outpatient.tables import NotificationKind

TEXTS: dict[NotificationKind, tuple[str, str]] = {
    NotificationKind.BOOKED: ("Приём назначен: {when}.", "A visit is booked: {when}."),
    NotificationKind.MOVED: ("Приём перенесён: {when}.", "A visit was moved: {when}."),
    NotificationKind.CANCELLED: ("Приём отменён: {when}.", "A visit was cancelled: {when}."),
    NotificationKind.LEAVE: (
        "Врача не будет: приём {when} придётся перенести.",
        "The doctor will be away: the visit of {when} has to be moved.",
    ),
    NotificationKind.OFFER: (
        "Освободилось время: {when}. Примите предложение или откажитесь.",
        "A time is free now: {when}. Accept the offer or decline it.",
    ),
    NotificationKind.REMINDER_DAY: ("Напоминаем о приёме: {when}.", "A reminder of your visit: {when}."),
    NotificationKind.REMINDER_HOUR: (
        "Приём меньше чем через час: {when}.",
        "Your visit is in less than an hour: {when}.",
    ),
}


def _cases(row: str, language: int) -> str:
    cases = " ".join(f"WHEN '{kind}' THEN '{texts[language]}'" for kind, texts in TEXTS.items())
    return f"CASE {row}.kind {cases} END"


def message(row: str) -> str:
    """SQL of what a notification row says, with the time of its visit on the dispensary's clocks as it is now."""
    starts_at = (
        f"coalesce((SELECT a.starts_at FROM appointment a WHERE a.id = {row}.appointment_id), "
        f"(SELECT s.starts_at FROM slot_offer o JOIN slot s ON s.id = o.slot_id WHERE o.id = {row}.offer_id))"
    )
    return (
        f"(SELECT replace(CASE WHEN x.language = 'en' THEN {_cases(row, 1)} ELSE {_cases(row, 0)} END, '{{when}}', "
        f"to_char({starts_at} AT TIME ZONE d.time_zone, 'DD.MM.YYYY HH24:MI')) "
        f"FROM account x, dispensary d WHERE x.id = {row}.account_id AND d.id = {row}.dispensary_id)"
    )
