"""Changing patients and stays; issuing certificates."""

from __future__ import annotations

import strawberry
import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from strawberry import UNSET

from ekoyka.api.context import Run
from ekoyka.api.enums import Outcome, Sex
from ekoyka.api.mutations import KEY_TEXT, VERSION_TEXT, given, key, mutation
from ekoyka.api.outpatient_mutations import TO_BOOK
from ekoyka.api.permissions import CLINICAL
from ekoyka.api.scalars import Date, DateTime, Phone
from ekoyka.certificates import operations as certificates
from ekoyka.certificates.operations import CertificateAnnulled, StayStillOpen, facts_of
from ekoyka.certificates.render import RenderBusy, RenderFailed
from ekoyka.certificates.tables import Certificate
from ekoyka.database import NETWORK
from ekoyka.errors import Refusal
from ekoyka.facilities.operations import Archived
from ekoyka.inpatient import corrections, patients, stays
from ekoyka.inpatient.availability import (
    BedClosed,
    BedNotReady,
    BedOccupied,
    BedReserved,
    HasOpenStays,
    RoomSexMismatch,
)
from ekoyka.inpatient.patients import AccountLinked, RecordNumberTaken
from ekoyka.inpatient.stays import (
    CheckOutBeforeCheckIn,
    InFuture,
    NotADoctorThere,
    PatientAlreadyAdmitted,
    PatientIsArchived,
    SameBed,
    StayAlreadyEnded,
)
from ekoyka.outpatient.appointments import book
from ekoyka.outpatient.facts import Policy, lock

log = structlog.get_logger(__name__)
field = strawberry.field


@strawberry.input(description="A new patient: a family and a given name, or a code name alone.")
class PatientRegisterInput:
    dispensary_id: strawberry.ID = field(description="Who registers them.")
    record_number: str = field(
        description="Medical record number, 1 to 40 characters, unique in the dispensary."
    )
    sex: Sex = field(description="Administrative sex.")
    family_name: str | None = field(description="Family name, 1 to 100 characters.", default=None)
    given_name: str | None = field(description="Given name, 1 to 100 characters.", default=None)
    patronymic: str | None = field(description="Patronymic, 1 to 100 characters.", default=None)
    code_name: str | None = field(description="The code name of anonymous treatment, alone.", default=None)
    birth_date: Date | None = field(description="Birth date.", default=None)
    phone: Phone | None = field(description="Phone.", default=None)
    address: str | None = field(description="Address, 1 to 200 characters.", default=None)
    identity_document: str | None = field(description="Identity document, 1 to 200 characters.", default=None)
    needs_isolation: bool = field(description="Whether the patient must be apart from others.", default=False)
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "patientRegister",
    returns="Patient",
    roles=CLINICAL,
    refusals=(RecordNumberTaken, Archived),
    description="A patient gets a record.",
)
async def patient_register(run: Run, session: AsyncSession, input: PatientRegisterInput) -> int:
    row = await patients.register_patient(
        session,
        actor=run.known_actor,
        dispensary_id=key("Dispensary", input.dispensary_id, "dispensaryId"),
        details=given(input, without={"dispensary_id"}),
    )
    return row.id


@strawberry.input(description="Changes of a patient's record; what is not given stays.")
class PatientUpdateInput:
    id: strawberry.ID = field(description="Who.")
    version: int = field(description=VERSION_TEXT)
    record_number: str | None = field(description="Medical record number.", default=UNSET)
    sex: Sex | None = field(description="Administrative sex.", default=UNSET)
    family_name: str | None = field(description="Family name.", default=UNSET)
    given_name: str | None = field(description="Given name.", default=UNSET)
    patronymic: str | None = field(description="Patronymic.", default=UNSET)
    code_name: str | None = field(description="Code name.", default=UNSET)
    birth_date: Date | None = field(description="Birth date.", default=UNSET)
    phone: Phone | None = field(description="Phone.", default=UNSET)
    address: str | None = field(description="Address.", default=UNSET)
    identity_document: str | None = field(description="Identity document.", default=UNSET)
    needs_isolation: bool | None = field(description="Whether the patient must be apart.", default=UNSET)


@mutation(
    "patientUpdate",
    returns="Patient",
    roles=CLINICAL,
    refusals=(RecordNumberTaken,),
    description="A patient's record is edited.",
)
async def patient_update(run: Run, session: AsyncSession, input: PatientUpdateInput) -> int:
    row = await patients.update_patient(
        session,
        actor=run.known_actor,
        patient_id=key("Patient", input.id, "id"),
        version=input.version,
        changes=given(input),
    )
    return row.id


@strawberry.input(description="Archiving a patient's record, or bringing it back.")
class PatientArchiveInput:
    id: strawberry.ID = field(description="Who.")
    version: int = field(description=VERSION_TEXT)
    archived: bool = field(description="False brings it back.", default=True)


@mutation(
    "patientArchive",
    returns="Patient",
    roles=CLINICAL,
    refusals=(HasOpenStays,),
    description="A patient's record is archived or brought back.",
)
async def patient_archive(run: Run, session: AsyncSession, input: PatientArchiveInput) -> int:
    row = await patients.set_archived(
        session,
        actor=run.known_actor,
        patient_id=key("Patient", input.id, "id"),
        version=input.version,
        archived=input.archived,
    )
    return row.id


@strawberry.input(description="Which account sees the record as its own.")
class PatientLinkAccountInput:
    id: strawberry.ID = field(description="Who.")
    version: int = field(description=VERSION_TEXT)
    account_id: strawberry.ID | None = field(description="The account; null: none.", default=None)


@mutation(
    "patientLinkAccount",
    returns="Patient",
    roles=CLINICAL,
    refusals=(AccountLinked,),
    description="A patient's record is linked to their account, so that they see their own stays and certificates.",
)
async def patient_link_account(run: Run, session: AsyncSession, input: PatientLinkAccountInput) -> int:
    row = await patients.link_account(
        session,
        actor=run.known_actor,
        patient_id=key("Patient", input.id, "id"),
        version=input.version,
        account_id=key("Account", input.account_id, "accountId") if input.account_id else None,
    )
    return row.id


@strawberry.input(description="A check-in (госпитализация).")
class StayCheckInInput:
    patient_id: strawberry.ID = field(description="Who.")
    bed_id: strawberry.ID = field(description="Into which bed.")
    checked_in_at: DateTime | None = field(
        description="When, if it was not now; never in the future.", default=None
    )
    planned_check_out_on: Date | None = field(
        description="The day it is planned to end, in local time.", default=None
    )
    diagnosis_code: str | None = field(description="ICD-10 code, such as F10.2.", default=None)
    board_alias: str | None = field(
        description="What a public board may show in place of the name.", default=None
    )
    attending_doctor_id: strawberry.ID | None = field(
        description="The attending doctor's account.", default=None
    )
    reservation_id: strawberry.ID | None = field(
        description="A reservation made for somebody on the way, which this check-in fulfils.", default=None
    )
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


_INTO_BED = (
    BedOccupied,
    BedReserved,
    BedClosed,
    BedNotReady,
    RoomSexMismatch,
    InFuture,
)


@mutation(
    "stayCheckIn",
    returns="Stay",
    roles=CLINICAL,
    refusals=(*_INTO_BED, PatientAlreadyAdmitted, PatientIsArchived, NotADoctorThere),
    description="A patient is checked in into a bed.",
)
async def stay_check_in(run: Run, session: AsyncSession, input: StayCheckInInput) -> int:
    row = await stays.check_in(
        session,
        actor=run.known_actor,
        patient_id=key("Patient", input.patient_id, "patientId"),
        bed_id=key("Bed", input.bed_id, "bedId"),
        at=input.checked_in_at,
        plan={
            "planned_check_out_on": input.planned_check_out_on,
            "diagnosis_code": input.diagnosis_code,
            "board_alias": input.board_alias,
        },
        attending_doctor_id=(
            key("Account", input.attending_doctor_id, "attendingDoctorId")
            if input.attending_doctor_id
            else None
        ),
        reservation_id=key("Reservation", input.reservation_id, "reservationId")
        if input.reservation_id
        else None,
    )
    return row.id


@strawberry.input(description="A transfer into another bed of the same dispensary (перевод).")
class StayTransferInput:
    id: strawberry.ID = field(description="Which stay.")
    version: int = field(description=VERSION_TEXT)
    bed_id: strawberry.ID = field(description="Into which bed.")
    at: DateTime | None = field(description="When, if it was not now; never in the future.", default=None)
    reservation_id: strawberry.ID | None = field(
        description="A reservation made for somebody on the way, which this transfer fulfils.", default=None
    )


@mutation(
    "stayTransfer",
    returns="Stay",
    roles=CLINICAL,
    refusals=(*_INTO_BED, SameBed, StayAlreadyEnded, CheckOutBeforeCheckIn),
    description="A patient changes beds: one assignment ends and the next begins at the same instant.",
)
async def stay_transfer(run: Run, session: AsyncSession, input: StayTransferInput) -> int:
    row = await stays.transfer(
        session,
        actor=run.known_actor,
        stay_id=key("Stay", input.id, "id"),
        version=input.version,
        bed_id=key("Bed", input.bed_id, "bedId"),
        at=input.at,
        reservation_id=key("Reservation", input.reservation_id, "reservationId")
        if input.reservation_id
        else None,
    )
    return row.id


@strawberry.input(description="What the certificate is to say.")
class CertificateRequest:
    language: str = field(description="The language: ru or en.", default="ru")
    purpose: str | None = field(
        description="The whole phrase, such as «для предъявления по месту работы», 1 to 200 characters.",
        default=None,
    )
    with_diagnosis: bool = field(description="Whether the diagnosis is printed.", default=False)
    neutral_header: bool = field(description="Whether it bears the dispensary's neutral name.", default=False)


async def _issue(run: Run, session: AsyncSession, stay_id: int, request: CertificateRequest) -> Certificate:
    certificate = await certificates.issue(
        session,
        actor=run.known_actor,
        stay_id=stay_id,
        request=given(request),
        base_url=run.services.settings.base_url,
    )
    facts = facts_of(certificate.facts)

    async def make_pdf() -> None:
        try:
            pdf = await run.services.renderer.render(facts)
        except (RenderBusy, RenderFailed):
            # The register is true all the same; the paper is made when it is asked for.
            log.warning("certificate_pdf_postponed")
            return
        async with run.database.transaction(ward=NETWORK) as later:
            await certificates.keep_pdf(later, certificate_id=certificate.id, pdf=pdf)

    run.after_commit.append(make_pdf)
    return certificate


@strawberry.input(description="A check-out (выписка).")
class StayCheckOutInput:
    id: strawberry.ID = field(description="Which stay.")
    version: int = field(description=VERSION_TEXT)
    outcome: Outcome = field(description="How it ended.")
    at: DateTime | None = field(
        description="When the patient left, if it was not now; never in the future.", default=None
    )
    certificate: CertificateRequest | None = field(
        description="The certificate to issue at once; null: none.", default=None
    )
    follow_up_slot_id: strawberry.ID | None = field(
        description="A slot for a follow-up visit, booked at once, such as one of `Stay.followUpSlots`; null: none.",
        default=None,
    )


@mutation(
    "stayCheckOut",
    returns="Stay",
    roles=CLINICAL,
    refusals=(StayAlreadyEnded, InFuture, CheckOutBeforeCheckIn, *TO_BOOK),
    description="A patient has left; the bed is free, or goes to cleaning where the dispensary wishes it so. A "
    "follow-up visit is booked with it, or nothing is done at all.",
)
async def stay_check_out(run: Run, session: AsyncSession, input: StayCheckOutInput) -> int:
    slot = key("Slot", input.follow_up_slot_id, "followUpSlotId") if input.follow_up_slot_id else None
    if slot is not None:
        # Before the patient, as whoever books locks them.
        await lock(session, run.known_actor, slots=[slot])
    row = await stays.check_out(
        session,
        actor=run.known_actor,
        stay_id=key("Stay", input.id, "id"),
        version=input.version,
        outcome=Outcome(input.outcome),
        at=input.at,
    )
    if slot is not None:
        try:
            await book(
                session,
                actor=run.known_actor,
                slot_id=slot,
                patient_id=row.patient_id,
                policy=Policy.of(run.services.settings),
            )
        except Refusal as refused:
            refused.path = ("followUpSlotId",)
            raise
    if input.certificate is not None:
        await _issue(run, session, row.id, input.certificate)
    return row.id


@strawberry.input(description="Changes of a stay; what is not given stays.")
class StayUpdateInput:
    id: strawberry.ID = field(description="Which stay.")
    version: int = field(description=VERSION_TEXT)
    planned_check_out_on: Date | None = field(description="The day it is planned to end.", default=UNSET)
    diagnosis_code: str | None = field(description="ICD-10 code.", default=UNSET)
    board_alias: str | None = field(description="What a public board may show.", default=UNSET)
    attending_doctor_id: strawberry.ID | None = field(
        description="The attending doctor's account.", default=UNSET
    )


@mutation(
    "stayUpdate",
    returns="Stay",
    roles=CLINICAL,
    refusals=(NotADoctorThere,),
    description="A stay's plan, diagnosis or attending doctor are edited.",
)
async def stay_update(run: Run, session: AsyncSession, input: StayUpdateInput) -> int:
    changes = given(input)
    if changes.get("attending_doctor_id") is not None:
        changes["attending_doctor_id"] = key("Account", changes["attending_doctor_id"], "attendingDoctorId")
    row = await stays.update_stay(
        session,
        actor=run.known_actor,
        stay_id=key("Stay", input.id, "id"),
        version=input.version,
        changes=changes,
    )
    return row.id


@strawberry.input(description="What really happened; what is not given stays.")
class StayCorrectInput:
    id: strawberry.ID = field(description="Which stay.")
    version: int = field(description=VERSION_TEXT)
    reason: str = field(description="Why it is corrected, 1 to 1000 characters.")
    checked_in_at: DateTime | None = field(description="When it really began.", default=None)
    checked_out_at: DateTime | None = field(description="When it really ended.", default=None)
    outcome: Outcome | None = field(description="How it really ended.", default=None)
    bed_id: strawberry.ID | None = field(description="Which bed the last one really was.", default=None)


@mutation(
    "stayCorrect",
    returns="Stay",
    roles=CLINICAL,
    refusals=(*_INTO_BED, PatientAlreadyAdmitted, CheckOutBeforeCheckIn),
    description="A stay is corrected, with a reason; its former version is kept.",
)
async def stay_correct(run: Run, session: AsyncSession, input: StayCorrectInput) -> int:
    row = await corrections.correct(
        session,
        actor=run.known_actor,
        stay_id=key("Stay", input.id, "id"),
        version=input.version,
        reason=input.reason,
        checked_in_at=input.checked_in_at,
        checked_out_at=input.checked_out_at,
        outcome=Outcome(input.outcome) if input.outcome else None,
        bed_id=key("Bed", input.bed_id, "bedId") if input.bed_id else None,
    )
    return row.id


@strawberry.input(description="A certificate to issue.")
class CertificateIssueInput:
    stay_id: strawberry.ID = field(description="Of which stay; it must have ended.")
    request: CertificateRequest | None = field(
        description="What it is to say; null: the usual.", default=None
    )
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "certificateIssue",
    returns="Certificate",
    roles=CLINICAL,
    refusals=(StayStillOpen,),
    description="A certificate is issued under the next number of the dispensary's year.",
    cost=1000,  # the making of its PDF
)
async def certificate_issue(run: Run, session: AsyncSession, input: CertificateIssueInput) -> int:
    wanted = input.request or CertificateRequest()
    return (await _issue(run, session, key("Stay", input.stay_id, "stayId"), wanted)).id


@strawberry.input(description="A duplicate to hand out.")
class CertificateReprintInput:
    id: strawberry.ID = field(description="Of which certificate.")
    reason: str | None = field(description="Why, 1 to 1000 characters.", default=None)


@mutation(
    "certificateReprint",
    returns="Certificate",
    roles=CLINICAL,
    refusals=(CertificateAnnulled,),
    description="The same bytes are handed out again; the register says «Дубликат».",
)
async def certificate_reprint(run: Run, session: AsyncSession, input: CertificateReprintInput) -> int:
    row = await certificates.reprint(
        session,
        actor=run.known_actor,
        certificate_id=key("Certificate", input.id, "id"),
        reason=input.reason,
    )
    return row.id


@strawberry.input(description="A certificate to annul.")
class CertificateAnnulInput:
    id: strawberry.ID = field(description="Which.")
    version: int = field(description=VERSION_TEXT)
    reason: str = field(description="Why, 1 to 1000 characters.")


@mutation(
    "certificateAnnul",
    returns="Certificate",
    roles=CLINICAL,
    refusals=(CertificateAnnulled,),
    description="A certificate certifies nothing any more; whoever verifies it is told so.",
)
async def certificate_annul(run: Run, session: AsyncSession, input: CertificateAnnulInput) -> int:
    row = await certificates.annul(
        session,
        actor=run.known_actor,
        certificate_id=key("Certificate", input.id, "id"),
        version=input.version,
        reason=input.reason,
    )
    return row.id
