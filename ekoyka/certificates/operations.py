"""The register of certificates: issuing, reprinting, annulling.

The number and all that the paper says are committed first and the PDF is made from them afterwards, outside
of any transaction: killed in between, the register is true and the paper is made when it is next asked for.
Free form under order 972н of the Ministry of Health, 14.09.2020: organisation, address, patient, period,
date, number, the doctor's name; the register records what was issued and every duplicate.
"""

import hashlib
import secrets
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, StringConstraints
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.certificates.render import CertificateFacts
from ekoyka.certificates.tables import Certificate, CertificateDuplicate
from ekoyka.columns import Line
from ekoyka.errors import Conflict, NotFound, VersionConflict
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Role
from ekoyka.inpatient.availability import checked_reason, now
from ekoyka.inpatient.tables import Outcome, Stay
from ekoyka.validation import validated

CLINICIANS = (Role.SUPERADMIN, Role.DOCTOR)
# Crockford's base 32: no letter is taken for a digit. 20 of them are 100 bits.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CODE_LENGTH = 20

_OUTCOMES = {
    "ru": {
        Outcome.DISCHARGED: "выписан(а)",
        Outcome.LEFT_AGAINST_ADVICE: "выбыл(а) по собственному желанию",
        Outcome.TRANSFERRED: "переведён(а) в другую организацию",
        Outcome.DIED: "умер(ла)",
    },
    "en": {
        Outcome.DISCHARGED: "discharged",
        Outcome.LEFT_AGAINST_ADVICE: "left at own request",
        Outcome.TRANSFERRED: "transferred to another organisation",
        Outcome.DIED: "died",
    },
}


class StayStillOpen(Conflict):
    """The stay has not ended, so there is no period to certify."""

    code = "STAY_STILL_OPEN"
    ru = "Госпитализация ещё не завершена: справка выдаётся при выписке."
    en = "The stay has not ended yet: the certificate is issued at check-out."


class CertificateAnnulled(Conflict):
    """The certificate has been annulled."""

    code = "CERTIFICATE_ANNULLED"
    ru = "Справка аннулирована: выдайте новую."
    en = "The certificate has been annulled: issue a new one."


class _Request(BaseModel):
    language: Annotated[str, StringConstraints(pattern="^(ru|en)$")]
    purpose: Annotated[Line, StringConstraints(max_length=200)] | None = None
    with_diagnosis: bool = False
    neutral_header: bool = False


_STAY = text(
    """
    SELECT d.name, d.neutral_name, d.address,
        (clock_timestamp() AT TIME ZONE d.time_zone)::date AS today,
        (s.checked_in_at AT TIME ZONE d.time_zone)::date AS first_day,
        (s.checked_out_at AT TIME ZONE d.time_zone)::date AS last_day,
        coalesce(p.code_name, concat_ws(' ', p.family_name, p.given_name, p.patronymic)) AS patient,
        p.birth_date, w.name AS doctor, w.position
    FROM stay s JOIN dispensary d ON d.id = s.dispensary_id JOIN patient p ON p.id = s.patient_id
    JOIN account w ON w.id = coalesce(s.attending_doctor_id, :actor)
    WHERE s.id = :stay
    """
)
_NUMBER = text(
    """
    INSERT INTO certificate_counter (dispensary_id, year, last_number) VALUES (:dispensary, :year, 1)
    ON CONFLICT (dispensary_id, year) DO UPDATE SET last_number = certificate_counter.last_number + 1
    RETURNING last_number
    """
)


async def issue(
    session: AsyncSession, *, actor: Actor, stay_id: int, request: dict[str, Any], base_url: str
) -> Certificate:
    """The certificate is in the register under the next number; its PDF is still to be made.

    The day of check-in and that of check-out count as one bed-day (order 545 of the Ministry of Health of
    the USSR, form 007/у). Raises `NotFound`, `StayStillOpen`, `Invalid`.
    """
    wanted = validated(_Request, request)
    stay = await session.get(Stay, stay_id, with_for_update={"read": True})
    if stay is None or not actor.works_in(stay.dispensary_id, CLINICIANS):
        raise NotFound(("stayId",))
    if stay.checked_out_at is None or stay.outcome is None:
        raise StayStillOpen(("stayId",), stay_id=stay_id)
    row = (await session.execute(_STAY, {"stay": stay_id, "actor": actor.account_id})).one()
    # The row lock on the counter is held until the commit: a number given out and rolled back is given again.
    number = await session.scalar(_NUMBER, {"dispensary": stay.dispensary_id, "year": row.today.year})
    assert number is not None
    code = "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_LENGTH))
    facts = CertificateFacts(
        language="en" if wanted.language == "en" else "ru",
        organisation=row.neutral_name if wanted.neutral_header else row.name,
        address=row.address,
        number=f"{number}/{row.today.year}",
        issued_on=row.today,
        patient_name=row.patient,
        birth_date=row.birth_date,
        checked_in_on=row.first_day,
        checked_out_on=row.last_day,
        bed_days=max(1, (row.last_day - row.first_day).days),
        outcome=_OUTCOMES[wanted.language][Outcome(stay.outcome)],
        diagnosis=stay.diagnosis_code if wanted.with_diagnosis else None,
        doctor_name=row.doctor,
        doctor_position=row.position,
        purpose=wanted.purpose,
        verification_url=f"{base_url}/verify/{code}",
    )
    certificate = Certificate(
        dispensary_id=stay.dispensary_id,
        stay_id=stay_id,
        year=row.today.year,
        number=number,
        language=wanted.language,
        issued_on=row.today,
        issued_by_id=actor.account_id,
        with_diagnosis=wanted.with_diagnosis,
        neutral_header=wanted.neutral_header,
        verification_code=code,
        facts={
            key: value.isoformat() if isinstance(value, date) else value
            for key, value in asdict(facts).items()
        },
    )
    session.add(certificate)
    await session.flush()
    _record(session, actor, "certificate_issue", certificate, stay)
    return certificate


def facts_of(stored: dict[str, Any]) -> CertificateFacts:
    """The facts as they were when the certificate was issued."""
    days = ("issued_on", "birth_date", "checked_in_on", "checked_out_on")
    values: dict[str, Any] = {
        key: date.fromisoformat(value) if key in days and value is not None else value
        for key, value in stored.items()
    }
    return CertificateFacts(**values)


async def keep_pdf(session: AsyncSession, *, certificate_id: int, pdf: bytes) -> bytes:
    """The certificate's bytes are these, unless others were kept before; whichever are kept are returned."""
    await session.execute(
        text("UPDATE certificate SET pdf = :pdf, sha256 = :sha256 WHERE id = :id AND pdf IS NULL"),
        {"pdf": pdf, "sha256": hashlib.sha256(pdf).hexdigest(), "id": certificate_id},
    )
    kept: bytes = (
        await session.execute(text("SELECT pdf FROM certificate WHERE id = :id"), {"id": certificate_id})
    ).scalar_one()
    return kept


def _record(
    session: AsyncSession,
    actor: Actor,
    action: str,
    certificate: Certificate,
    stay: Stay,
    reason: str | None = None,
) -> None:
    access_log.record(
        session,
        actor,
        action,
        "Certificate",
        certificate.id,
        patient_id=stay.patient_id,
        dispensary_id=certificate.dispensary_id,
        reason=reason,
    )


async def _locked(
    session: AsyncSession, *, actor: Actor, certificate_id: int, version: int | None
) -> tuple[Certificate, Stay]:
    certificate = await session.get(Certificate, certificate_id, with_for_update=True)
    if certificate is None or not actor.works_in(certificate.dispensary_id, CLINICIANS):
        raise NotFound(("id",))
    if version is not None and certificate.version != version:
        raise VersionConflict(
            ("version",),
            object_type="Certificate",
            object_id=certificate_id,
            current_version=certificate.version,
        )
    if certificate.annulled_at is not None:
        raise CertificateAnnulled(("id",), annulled_at=certificate.annulled_at)
    stay = await session.get(Stay, certificate.stay_id)
    assert stay is not None
    return certificate, stay


async def reprint(
    session: AsyncSession, *, actor: Actor, certificate_id: int, reason: str | None
) -> Certificate:
    """The register says that a duplicate was handed out; the bytes are the first ones'.

    Raises `NotFound`, `CertificateAnnulled`, `Invalid`.
    """
    certificate, stay = await _locked(session, actor=actor, certificate_id=certificate_id, version=None)
    why = checked_reason(reason) if reason is not None else None
    session.add(
        CertificateDuplicate(certificate_id=certificate_id, issued_by_id=actor.account_id, reason=why)
    )
    _record(session, actor, "certificate_reprint", certificate, stay, why)
    await session.flush()
    return certificate


async def annul(
    session: AsyncSession, *, actor: Actor, certificate_id: int, version: int, reason: str
) -> Certificate:
    """The certificate certifies nothing any more; whoever verifies it is told so.

    Raises `NotFound`, `VersionConflict`, `CertificateAnnulled`, `Invalid`.
    """
    why = checked_reason(reason)
    certificate, stay = await _locked(session, actor=actor, certificate_id=certificate_id, version=version)
    certificate.annulled_at = await now(session)
    certificate.annulled_by_id = actor.account_id
    certificate.annulment_reason = why
    certificate.version += 1
    _record(session, actor, "certificate_annul", certificate, stay, why)
    await session.flush()
    return certificate
