"""The enums of the graph, described; whoever names one in an annotation imports it from here."""

from enum import StrEnum

from ekoyka.facilities.tables import RoomSex, ServiceState
from ekoyka.graph import declare as graph
from ekoyka.identity.tables import Role
from ekoyka.inpatient.queries import BedChange, BedObstacle, BedStatus
from ekoyka.inpatient.tables import Outcome, ReservationOutcome, Sex
from ekoyka.outpatient.tables import (
    AppointmentChange,
    AppointmentStatus,
    NotificationKind,
    OfferOutcome,
    SlotChange,
    SlotStatus,
    TimeOffKind,
    WaitingOutcome,
    Weekday,
)

__all__ = [
    "AppointmentChange",
    "AppointmentStatus",
    "BedChange",
    "BedObstacle",
    "BedStatus",
    "FeedKind",
    "NotificationKind",
    "OfferOutcome",
    "Outcome",
    "ReservationOutcome",
    "Role",
    "RoomSex",
    "ServiceState",
    "Sex",
    "SlotChange",
    "SlotStatus",
    "TimeOffKind",
    "WaitingOutcome",
    "Weekday",
]


class FeedKind(StrEnum):
    """What an event of the feed is."""

    SNAPSHOT = "SNAPSHOT"
    CHANGE = "CHANGE"


graph.enum(
    Role,
    "What an account may do.",
    {
        "SUPERADMIN": "Everything in the whole network.",
        "DOCTOR": "The clinical work of one dispensary.",
        "DISPATCHER": "Sees one dispensary's free beds and reserves them; sees no diagnosis.",
        "USER": "Whoever is registered: their own account and record.",
    },
)
graph.enum(
    RoomSex,
    "Whom a room (палата) takes.",
    {"MALE": "Men only.", "FEMALE": "Women only.", "ANY": "Anyone."},
)
graph.enum(
    ServiceState,
    "Whether a bed can be used, whoever lies in it (HL7 table 0116).",
    {
        "IN_SERVICE": "It can.",
        "CLEANING": "It is being cleaned (H).",
        "CONTAMINATED": "It is contaminated (K).",
        "ISOLATED": "It is set apart for isolation (I).",
        "CLOSED": "It is closed (C), for the reason that its open closure gives.",
    },
)
graph.enum(
    BedStatus,
    "A bed's occupancy and service state in one word; derived, never stored.",
    {
        "FREE": "Nobody lies in it and it can be used.",
        "OCCUPIED": "Somebody lies in it.",
        "RESERVED": "It is kept for somebody.",
        "CLEANING": "Empty, being cleaned.",
        "CONTAMINATED": "Empty, contaminated.",
        "ISOLATED": "Empty, set apart for isolation.",
        "CLOSED": "Empty, closed.",
    },
)
graph.enum(Sex, "Administrative sex, as far as rooms need it.", {"MALE": "Мужской.", "FEMALE": "Женский."})
graph.enum(
    Outcome,
    "How a stay ended.",
    {
        "DISCHARGED": "Treatment was completed (выписан).",
        "LEFT_AGAINST_ADVICE": "Left against advice (самовольный уход).",
        "TRANSFERRED": "Moved to another organisation (переведён).",
        "DIED": "Died (умер).",
    },
)
graph.enum(
    ReservationOutcome,
    "How a reservation ended.",
    {
        "FULFILLED": "Its patient was checked in.",
        "RELEASED": "Somebody gave the bed free.",
        "LAPSED": "Its time ran out.",
    },
)
graph.enum(
    BedObstacle,
    "Why a bed does not suit a patient.",
    {
        "OCCUPIED": "Somebody lies in it.",
        "RESERVED": "It is kept for somebody else.",
        "CLEANING": "It is being cleaned.",
        "CONTAMINATED": "It is contaminated.",
        "ISOLATED": "It is set apart for isolation.",
        "CLOSED": "It is closed.",
        "ROOM_SEX": "The room is for the other sex.",
        "ISOLATION_NEEDED": "The patient must be apart and the room is not for that.",
        "ISOLATION_ROOM": "The room is kept for patients who must be apart.",
        "STAFFED_LIMIT": "The dispensary has as many patients as it is staffed for.",
    },
)
graph.enum(
    FeedKind,
    "What an event of the feed is.",
    {
        "SNAPSHOT": "The present state: at the beginning, and whenever changes may have been missed.",
        "CHANGE": "Committed changes, one or more.",
    },
)
graph.enum(
    BedChange,
    "What happened to a bed.",
    {
        "CHECKED_IN": "A patient was checked in.",
        "CHECKED_OUT": "Its patient left.",
        "TRANSFERRED_IN": "A patient came from another bed.",
        "TRANSFERRED_OUT": "Its patient went to another bed.",
        "RESERVED": "It was reserved.",
        "RESERVATION_RELEASED": "It was given free.",
        "RESERVATION_LAPSED": "Its reservation's time ran out.",
        "SERVICE_STATE_CHANGED": "It went to cleaning, was closed, or returned to service.",
        "CREATED": "It is new.",
        "DELETED": "It was deleted.",
        "ARCHIVED": "It was archived.",
        "CORRECTED": "A stay in it was corrected.",
    },
)
graph.enum(
    Weekday,
    "A day of the week.",
    {
        "MONDAY": "Понедельник.",
        "TUESDAY": "Вторник.",
        "WEDNESDAY": "Среда.",
        "THURSDAY": "Четверг.",
        "FRIDAY": "Пятница.",
        "SATURDAY": "Суббота.",
        "SUNDAY": "Воскресенье.",
    },
)
graph.enum(
    TimeOffKind,
    "Why a doctor sees nobody.",
    {"LEAVE": "Leave (отпуск).", "BREAK": "A break, such as lunch (перерыв).", "OTHER": "Anything else."},
)
graph.enum(
    SlotStatus,
    "Whether a slot can be booked (FHIR R5, SlotStatus); derived, never stored.",
    {
        "FREE": "Anybody may book it.",
        "BUSY": "An appointment holds it.",
        "BUSY_TENTATIVE": "It is held for somebody for some minutes, or offered to somebody who waits.",
        "BUSY_UNAVAILABLE": "It is in the past, or the doctor is away or blocked.",
        "ENTERED_IN_ERROR": "The rules no longer give it: it was withdrawn.",
    },
)
graph.enum(
    AppointmentStatus,
    "What has become of an appointment (FHIR R5, AppointmentStatus).",
    {
        "BOOKED": "It is to come, or nobody has said what became of it.",
        "ARRIVED": "The patient has come (явился).",
        "FULFILLED": "The visit took place (приём состоялся).",
        "CANCELLED": "It was cancelled (отменена).",
        "NOSHOW": "The patient did not come (неявка).",
        "ENTERED_IN_ERROR": "It never should have been there.",
    },
)
graph.enum(
    WaitingOutcome,
    "How waiting for a visit ended.",
    {
        "BOOKED": "An offer was accepted.",
        "LEFT": "The patient left the line.",
        "CLOSED": "The appointment for which an earlier one was wanted is over.",
    },
)
graph.enum(
    OfferOutcome,
    "How an offer of a freed slot ended.",
    {
        "ACCEPTED": "It was accepted.",
        "DECLINED": "It was declined.",
        "LAPSED": "Its time ran out.",
        "WITHDRAWN": "The patient did not wait any more.",
    },
)
graph.enum(
    NotificationKind,
    "What a notification tells.",
    {
        "BOOKED": "A visit was booked.",
        "MOVED": "A visit was moved to another time, or another doctor.",
        "CANCELLED": "A visit was cancelled.",
        "LEAVE": "The doctor will be away: the visit is to be moved.",
        "OFFER": "A slot is free now for somebody who waits.",
        "REMINDER_DAY": "A visit is a day ahead.",
        "REMINDER_HOUR": "A visit is an hour ahead.",
    },
)
graph.enum(
    SlotChange,
    "What happened to a doctor's slots.",
    {
        "TAKEN": "One was booked.",
        "FREED": "One is free again after it was booked.",
        "HELD": "One is held for somebody for some minutes.",
        "OFFERED": "One is offered to somebody who waits.",
        "RELEASED": "One is not held or offered any more.",
        "RULES": "Slots were made or withdrawn, as hours or the day have changed.",
    },
)
graph.enum(
    AppointmentChange,
    "What happened to an appointment.",
    {
        "BOOKED": "It is new.",
        "MOVED": "It was moved.",
        "ARRIVED": "The patient has come.",
        "FULFILLED": "The visit took place.",
        "CANCELLED": "It was cancelled.",
        "NOSHOW": "The patient did not come.",
        "ENTERED_IN_ERROR": "It never should have been there.",
        "LEAVE": "The doctor will be away then.",
        "UPDATED": "What is said about it was edited.",
    },
)
