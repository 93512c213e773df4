"""The GraphQL types of the domains' refusals: each carries what the client needs to act on.

The ward's rules live in the operations that raise them; here is only how they are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ekoyka.api.mutations import refusal
from ekoyka.api.permissions import CLINICAL_OR_OWN, STAFF
from ekoyka.certificates.operations import CertificateAnnulled, StayStillOpen
from ekoyka.errors import Forbidden
from ekoyka.facilities.operations import Archived, HasHistory, LabelTaken, NumberTaken
from ekoyka.graph import declare as graph
from ekoyka.identity.operations import (
    EmailTaken,
    LastSuperadmin,
    OwnAccount,
    RegistrationClosed,
    RoleHeld,
)
from ekoyka.identity.sessions import AccountBlocked, CredentialsWrong, ResetCodeWrong, SessionEnded
from ekoyka.inpatient.availability import (
    BedClosed,
    BedNotReady,
    BedOccupied,
    BedReserved,
    HasOpenStays,
    RoomSexMismatch,
)
from ekoyka.inpatient.patients import AccountLinked, RecordNumberTaken
from ekoyka.inpatient.reservations import ReservationEnded
from ekoyka.inpatient.stays import (
    CheckOutBeforeCheckIn,
    InFuture,
    NotADoctorThere,
    PatientAlreadyAdmitted,
    PatientIsArchived,
    SameBed,
    StayAlreadyEnded,
)

if TYPE_CHECKING:
    from ekoyka.api.facilities import Bed, Room
    from ekoyka.api.inpatient import Patient, Stay
    from ekoyka.api.scalars import Date, DateTime
    from ekoyka.facilities.tables import ServiceState

_ALTERNATIVES = "Up to three beds of the dispensary that would suit the patient instead, best first."


def _alternatives() -> list[Bed]:
    beds: list[Bed] = graph.listing(
        lambda row, child, names: f"{child}.id = ANY({row}.alternative_ids)",
        _ALTERNATIVES,
        order=lambda row, child: f"array_position({row}.alternative_ids, {child}.id)",
        roles=STAFF,
    )
    return beds


@refusal(
    BedOccupied,
    "Somebody lies in the bed during that time.",
    {
        "bed_id": "bigint",
        "occupied_since": "timestamptz",
        "occupied_until": "timestamptz",
        "expected_end_on": "date",
        "alternative_ids": "bigint[]",
    },
)
class _BedOccupied:
    bed: Bed | None = graph.one("bed_id", "The bed.", roles=STAFF)
    occupied_since: DateTime | None = graph.column(
        "Since when somebody lies in it: the colliding interval's beginning."
    )
    occupied_until: DateTime | None = graph.column("The colliding interval's end; null while it lasts.")
    expected_end_on: Date | None = graph.column(
        "When it is planned to end, in local days; null if nothing is planned."
    )
    alternatives: list[Bed] = _alternatives()


@refusal(
    BedReserved,
    "The bed is kept for somebody else.",
    {"bed_id": "bigint", "reserved_until": "timestamptz", "alternative_ids": "bigint[]"},
)
class _BedReserved:
    bed: Bed | None = graph.one("bed_id", "The bed; its current reservation is there.", roles=STAFF)
    reserved_until: DateTime | None = graph.column("Until when it is kept.")
    alternatives: list[Bed] = _alternatives()


@refusal(
    BedClosed,
    "The bed is closed.",
    {"bed_id": "bigint", "closed_at": "timestamptz", "reason": "text", "alternative_ids": "bigint[]"},
)
class _BedClosed:
    bed: Bed | None = graph.one("bed_id", "The bed.", roles=STAFF)
    closed_at: DateTime | None = graph.column("Since when it is closed.")
    reason: str | None = graph.column("Why it is closed.")
    alternatives: list[Bed] = _alternatives()


@refusal(
    BedNotReady,
    "The bed is being cleaned, is contaminated or set apart.",
    {"bed_id": "bigint", "service_state": "text", "alternative_ids": "bigint[]"},
)
class _BedNotReady:
    bed: Bed | None = graph.one("bed_id", "The bed.", roles=STAFF)
    service_state: ServiceState | None = graph.column("What it is in.")
    alternatives: list[Bed] = _alternatives()


@refusal(
    RoomSexMismatch,
    "The room does not take patients of this sex.",
    {"bed_id": "bigint", "room_id": "bigint", "alternative_ids": "bigint[]"},
)
class _RoomSexMismatch:
    bed: Bed | None = graph.one("bed_id", "The bed.", roles=STAFF)
    room: Room | None = graph.one("room_id", "The room.", roles=STAFF)
    alternatives: list[Bed] = _alternatives()


@refusal(
    PatientAlreadyAdmitted,
    "The patient stays somewhere at that time. Where and since when is told only to whoever may know.",
    {"patient_id": "bigint", "stay_id": "bigint", "since": "timestamptz", "until": "timestamptz"},
)
class _PatientAlreadyAdmitted:
    patient: Patient | None = graph.one("patient_id", "The patient.", roles=CLINICAL_OR_OWN)
    stay: Stay | None = graph.one("stay_id", "The stay, if the actor may know of it.", roles=CLINICAL_OR_OWN)
    since: DateTime | None = graph.column("The colliding interval's beginning, if the actor may know.")
    until: DateTime | None = graph.column("The colliding interval's end; null while it lasts.")


@refusal(PatientIsArchived, "The patient's record is archived.", {"patient_id": "bigint"})
class _PatientIsArchived:
    patient: Patient | None = graph.one("patient_id", "The patient.", roles=CLINICAL_OR_OWN)


@refusal(StayAlreadyEnded, "The stay is over.", {"stay_id": "bigint", "ended_at": "timestamptz"})
class _StayAlreadyEnded:
    stay: Stay | None = graph.one("stay_id", "The stay.", roles=CLINICAL_OR_OWN)
    ended_at: DateTime | None = graph.column("When it ended.")


@refusal(
    CheckOutBeforeCheckIn,
    "The instant lies before the stay, or its present bed, began.",
    {"stay_id": "bigint", "checked_in_at": "timestamptz"},
)
class _CheckOutBeforeCheckIn:
    stay: Stay | None = graph.one("stay_id", "The stay.", roles=CLINICAL_OR_OWN)
    began_at: DateTime | None = graph.column("When it began.", name="checked_in_at")


@refusal(InFuture, "The instant is in the future.", {"now": "timestamptz"})
class _InFuture:
    now: DateTime | None = graph.column("The server's present.")


@refusal(SameBed, "The patient lies in this bed already.", {"bed_id": "bigint"})
class _SameBed:
    bed: Bed | None = graph.one("bed_id", "The bed.", roles=STAFF)


@refusal(HasOpenStays, "Somebody stays in it.", {"open_stays": "int"})
class _HasOpenStays:
    open_stays: int = graph.column("How many stay.")


@refusal(StayStillOpen, "The stay has not ended yet.", {"stay_id": "bigint"})
class _StayStillOpen:
    stay: Stay | None = graph.one("stay_id", "The stay.", roles=CLINICAL_OR_OWN)


@refusal(CertificateAnnulled, "The certificate has been annulled.", {"annulled_at": "timestamptz"})
class _CertificateAnnulled:
    annulled_at: DateTime | None = graph.column("Since when.")


def _plain() -> type:
    return type("Plain", (), {})


for _cls, _text in {
    Forbidden: "The actor's role does not allow this here.",
    Archived: "It is archived, so nothing new can be put into it.",
    HasHistory: "There is history behind it, so it can be archived but not deleted.",
    NumberTaken: "Another room of the dispensary has this number.",
    LabelTaken: "Another bed of the room has this label.",
    ReservationEnded: "The reservation is over already.",
    RecordNumberTaken: "Another patient of the dispensary has this medical record number.",
    AccountLinked: "The account is linked to another patient's record.",
    NotADoctorThere: "The attending doctor does not work in the dispensary.",
    EmailTaken: "Somebody has registered with this e-mail address.",
    RegistrationClosed: "Accounts are made by administrators on this server.",
    CredentialsWrong: "The e-mail address or the password is wrong.",
    AccountBlocked: "The account is blocked.",
    SessionEnded: "The refresh token is no good any more.",
    ResetCodeWrong: "The code for a new password is unknown, used or too old.",
    LastSuperadmin: "It would leave the network without a superadministrator who can sign in.",
    OwnAccount: "One cannot block oneself.",
    RoleHeld: "The account holds this role already.",
}.items():
    refusal(_cls, _text)(_plain())
