"""Registering and editing patients."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import constraint_name
from ekoyka.errors import Conflict, Invalid, NotFound, VersionConflict
from ekoyka.facilities.operations import Archived
from ekoyka.facilities.tables import Dispensary
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Account, Role
from ekoyka.inpatient.availability import HasOpenStays
from ekoyka.inpatient.queries import patient_in_dispensaries
from ekoyka.inpatient.tables import Patient, PatientDetails
from ekoyka.validation import changed, validated


class RecordNumberTaken(Conflict):
    """Another patient of the dispensary has this medical record number."""

    code = "RECORD_NUMBER_TAKEN"
    ru = "Карта с таким номером уже есть: возможно, пациент уже зарегистрирован."
    en = "Another patient has this record number: this one may be registered already."


class AccountLinked(Conflict):
    """The account is linked to another patient's record."""

    code = "ACCOUNT_LINKED"
    ru = "Эта учётная запись уже связана с другой картой."
    en = "This account is linked to another record."


async def _flush(session: AsyncSession) -> None:
    try:
        await session.flush()
    except IntegrityError as error:
        match constraint_name(error):
            case "uq_patient_record_number":
                raise RecordNumberTaken(("recordNumber",)) from error
            case "uq_patient_account_id":
                raise AccountLinked(("accountId",)) from error
            case _:
                raise


def _past_birth(details: PatientDetails) -> PatientDetails:
    # A day of tolerance: it may be tomorrow already where the dispensary is.
    if details.birth_date is not None and (details.birth_date - datetime.now(UTC).date()).days > 1:
        raise Invalid(("birthDate",), ru="Дата рождения в будущем.", en="The birth date is in the future.")
    return details


async def register_patient(
    session: AsyncSession, *, actor: Actor, dispensary_id: int, details: dict[str, Any]
) -> Patient:
    """The patient has a record. Raises `NotFound`, `Archived`, `RecordNumberTaken`, `Invalid`."""
    dispensary = await session.get(Dispensary, dispensary_id)
    if dispensary is None or not actor.works_in(dispensary_id, (Role.SUPERADMIN, Role.DOCTOR)):
        raise NotFound(("dispensaryId",))
    if dispensary.archived_at is not None:
        raise Archived(("dispensaryId",))
    patient = Patient(
        dispensary_id=dispensary_id, **_past_birth(validated(PatientDetails, details)).model_dump()
    )
    session.add(patient)
    await _flush(session)
    access_log.record(
        session,
        actor,
        "patient_register",
        "Patient",
        patient.id,
        patient_id=patient.id,
        dispensary_id=dispensary_id,
    )
    return patient


_KNOWN = text(
    "SELECT true FROM patient p WHERE p.id = :id AND (:everywhere OR "
    f"{patient_in_dispensaries('p', 'CAST(:places AS bigint[])')}) FOR NO KEY UPDATE OF p"
)


async def _locked(session: AsyncSession, *, actor: Actor, patient_id: int, version: int) -> Patient:
    """The patient, locked, if the actor may know of them as a superadministrator or doctor."""
    known = await session.scalar(
        _KNOWN, {"id": patient_id, "everywhere": actor.superadmin, "places": sorted(actor.doctor_of)}
    )
    patient = await session.get(Patient, patient_id, populate_existing=True) if known else None
    if patient is None:
        raise NotFound(("patientId",))
    if patient.version != version:
        raise VersionConflict(
            ("version",), object_type="Patient", object_id=patient_id, current_version=patient.version
        )
    patient.version += 1
    return patient


async def update_patient(
    session: AsyncSession, *, actor: Actor, patient_id: int, version: int, changes: dict[str, Any]
) -> Patient:
    """The record is as changed. Raises `NotFound`, `VersionConflict`, `RecordNumberTaken`, `Invalid`."""
    patient = await _locked(session, actor=actor, patient_id=patient_id, version=version)
    for name, value in _past_birth(changed(patient, PatientDetails, changes)).model_dump().items():
        setattr(patient, name, value)
    await _flush(session)
    access_log.record(session, actor, "patient_update", "Patient", patient_id, patient_id=patient_id)
    return patient


async def set_archived(
    session: AsyncSession, *, actor: Actor, patient_id: int, version: int, archived: bool
) -> Patient:
    """The record is archived, or brought back. Raises `NotFound`, `VersionConflict`, `HasOpenStays`."""
    patient = await _locked(session, actor=actor, patient_id=patient_id, version=version)
    if archived and await session.scalar(
        text("SELECT true FROM stay WHERE patient_id = :id AND checked_out_at IS NULL"), {"id": patient_id}
    ):
        raise HasOpenStays(("id",), open_stays=1)
    patient.archived_at = datetime.now(UTC) if archived else None
    access_log.record(
        session,
        actor,
        "patient_archive" if archived else "patient_unarchive",
        "Patient",
        patient_id,
        patient_id=patient_id,
    )
    return patient


async def link_account(
    session: AsyncSession, *, actor: Actor, patient_id: int, version: int, account_id: int | None
) -> Patient:
    """The account sees this record as its own; without an account, none does.

    Raises `NotFound`, `VersionConflict`, `AccountLinked`.
    """
    patient = await _locked(session, actor=actor, patient_id=patient_id, version=version)
    if account_id is not None and await session.get(Account, account_id) is None:
        raise NotFound(("accountId",))
    patient.account_id = account_id
    await _flush(session)
    access_log.record(session, actor, "patient_link_account", "Patient", patient_id, patient_id=patient_id)
    return patient
